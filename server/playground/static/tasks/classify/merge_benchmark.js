// What merging gains: batches of one picture, with merging and without in turn, so that both meet the same machine.

import { h, seconds } from "../../dom.js";

const BATCHES = 10;
const BATCH = 16;
const LITTLE = 1.3; // times as fast

/** sent: {parts, options} of one picture with merging. Resolves with what it came to, as an element. */
export async function comparison(session, { parts: [part], options }) {
  const { trace: _, ...merged } = options; // a trace is run by PyTorch alone: what usually answers is compared
  const ways = [merged, { ...merged, merge: "off" }];
  const many = await medians(session, Array(BATCH).fill(part), ways, `batches of ${BATCH}`);
  const one = await medians(session, [part], ways, "single images");
  return h(
    "div",
    { class: "compared" },
    h(
      "p",
      {},
      h("strong", {}, `${gain(many)}× as fast`),
      ` in the model, ${BATCH} images at a time: ${told(many)} (medians of ${BATCHES} each, alternating).`,
    ),
    h("p", { class: "caption" }, `${alone(one, many)}: ${told(one)}, ${gain(one)}×.`),
  );
}

const told = ([merged, plain]) => `${seconds(merged)} with merging, ${seconds(plain)} without`;
const gain = ([merged, plain]) => (plain / merged).toFixed(2);

function alone(one, many) {
  if (gain(one) < LITTLE) return "A single image gains little, since merging pays off in batches";
  return Number(gain(one)) < Number(gain(many)) ? "A single image gains less" : "A single image";
}

/** Milliseconds of the model for these pictures, for each of the ways. */
async function medians(session, parts, ways, words) {
  const times = ways.map(() => []);
  for (let batch = 0; batch < BATCHES; batch++) {
    for (const [index, options] of ways.entries()) {
      const { timing } = await session.ask("v1/classify", { parts, options });
      // the service may have split them: then this is the time of one of its batches
      times[index].push((timing.inference_ms * parts.length) / Math.min(parts.length, timing.batch_size));
    }
    session.doing(`Comparing ${words}: ${batch + 1} of ${BATCHES}`);
  }
  return times.map((some) => some.sort((a, b) => a - b)).map((some) => (some[BATCHES / 2 - 1] + some[BATCHES / 2]) / 2);
}
