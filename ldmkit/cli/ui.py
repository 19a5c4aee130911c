"""`ldmkit ui`: a page in the browser to draw on."""

import re
from pathlib import Path

import click

from ldmkit.cli.common import provider_option
from ldmkit.report import tell


@click.command()
@click.argument("bundle", required=False, type=click.Path(path_type=Path))
@click.option("--port", type=click.IntRange(0, 65535), help="0: any free one. Default: the first free from 7860 on.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--share", is_flag=True, help="Make a public link, through a server run by the makers of Gradio.")
@click.option("--browser/--no-browser", default=True, show_default=True, help="Open the page in the browser.")
@provider_option("What the bundles' networks run on.")
@click.option("--auth", type=click.Path(path_type=Path), help="File of lines NAME:PASSWORD: nobody else may draw.")
@click.option("--allowed-host", multiple=True, help="Another name of this server, as a reverse proxy's; repeatable.")
@click.option("--root-path", default="", help="Path at which a reverse proxy has the page, such as /draw.")
@click.option("--web", type=click.Path(path_type=Path), help="Serve this folder, written by `ldmkit export web`.")
def ui(
    bundle: Path | None,
    *,
    port: int | None,
    host: str,
    share: bool,
    browser: bool,
    provider: str,
    auth: Path | None,
    allowed_host: tuple[str, ...],
    root_path: str,
    web: Path | None,
) -> None:
    """Draw in the browser, on a page that this machine serves.

    BUNDLE is a bundle's folder; without it the page offers every bundle in exports/.
    """
    if web is not None:
        from ldmkit.web.serve import serve_page

        if bundle is not None or share or provider != "auto" or auth or allowed_host or root_path:
            raise click.UsageError(
                "--web serves a page that draws by itself: it goes with --host, --port and --browser"
            )
        serve_page(web, host=host, port=port, browser=browser, tell=tell)
        return
    from ldmkit import shipped
    from ldmkit.cli.common import UI, require
    from ldmkit.errors import LdmkitError
    from ldmkit.runtime.bundle import Bundle
    from ldmkit.runtime.find import bundles_in, default_bundle

    require(*UI, extra="ui")
    from ldmkit.ui.passwords import read_passwords
    from ldmkit.ui.serve import serve

    if root_path and not re.fullmatch(r"(/[\w.~-]+)+", root_path):
        raise click.UsageError(f"--root-path {root_path}: must be a path such as /draw, without a / at its end")
    passwords = read_passwords(auth) if auth else None
    opened = {}
    if bundle is not None:
        opened[bundle.resolve().name] = Bundle.load(bundle, provider=provider)
    else:
        default = default_bundle(Path("exports"), shipped.exports_dir())
        opened[default.name] = Bundle.load(default, provider=provider)
        for folder, _ in bundles_in(default.parent):
            try:
                opened.setdefault(folder.name, Bundle.load(folder, provider=provider))
            except LdmkitError as error:
                tell(f"warning: left out: {error}", err=True)
    serve(
        opened,
        host=host,
        port=port,
        share=share,
        browser=browser,
        tell=lambda line: tell(line, err=line.startswith("warning")),
        allowed=allowed_host,
        root_path=root_path,
        passwords=passwords,
    )
