"""`ldmkit doctor`."""

import click

from ldmkit.report import tell


@click.command()
@click.option("--no-torch", is_flag=True, help="Skip torch, whose import takes seconds.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of lines.")
def doctor(*, no_torch: bool, as_json: bool) -> int:
    """Check packages, GPU, providers and disk; suggest fixes. Exit code 1: something is broken."""
    import json
    from dataclasses import asdict

    from ldmkit.doctor import examine

    findings = examine(runs_torch=not no_torch)
    broken = [finding for finding in findings if finding.state == "broken"]
    if as_json:
        found = {"broken": len(broken), "findings": [asdict(finding) for finding in findings]}
        tell(*json.dumps(found, indent=2).split("\n"))
        return 1 if broken else 0
    width = max(len(finding.name) for finding in findings)
    for finding in findings:
        tell(f"{finding.state:6}  {finding.name:{width}}  {finding.found}")
        for mark, words in (("", finding.meaning), ("-> ", finding.remedy)):
            if words:
                tell(f"{'':6}  {'':{width}}  {mark}{words}")
    tell(f"{len(broken)} broken" if broken else "nothing is broken")
    return 1 if broken else 0
