// Draws latents with the page's samplers and a network that is a formula; tests/web/test_samplers.py is the other half.
// stdin: JSON of { grids, cases }; stdout: JSON of each case's latents.
import { drawLatents, gridOf } from "../../ldmkit/web/page/draw.js";

let text = "";
for await (const part of process.stdin) text += part;
const { grids, cases } = JSON.parse(text);

/** What a network would put out that takes the picture for z / (1 + |z|), z = 1.5 x - 0.2 t / 1000. */
function output(prediction, x, alpha, sigma, t) {
  const z = 1.5 * x - (0.2 * t) / 1000;
  const x0 = z / (1 + Math.abs(z));
  const noise = (x - alpha * x0) / sigma;
  return { eps: noise, x0, v: alpha * noise - sigma * x0, flow: noise - x0 }[prediction];
}

const drawn = [];
for (const { prediction, schedule, sampler, options, steps, seeds } of cases) {
  const grid = gridOf(grids[schedule], steps, options);
  const latent = { channels: 2, height: 3, width: 4 };
  const network = async (x, t) => {
    const i = grid.t.findIndex((each) => Math.fround(each) === t);
    return x.map((value) => output(prediction, value, grid.alpha[i], grid.sigma[i], t));
  };
  const plan = { sampler, options, seeds };
  drawn.push(Array.from(await drawLatents({ prediction, latent }, grid, plan, network, async () => {})));
}
process.stdout.write(JSON.stringify(drawn));
