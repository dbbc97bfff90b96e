// Labels and their scores as bars.

import { h, percent } from "./dom.js";

/**
 * predictions: [{label, score, cosine?}, …], best first; the cosine stands beside the score. before: label → the score from which its bar moves.
 */
export function bars(predictions, before = new Map()) {
  const rows = predictions.map(({ label, score, cosine }) =>
    h(
      "li",
      {},
      h("span", { class: "label" }, label),
      h("span", { class: "score" }, percent(score), cosine === undefined ? null : ` · cosine ${cosine.toFixed(2)}`),
      bar(score, before.get(label) ?? score),
    ),
  );
  return h("ol", { class: "bars" }, rows);
}

/** Decoration: label and score say the same. */
function bar(score, from) {
  const filled = h("i");
  const fill = (share) => (filled.style.width = `${100 * share}%`);
  fill(from);
  if (from !== score) requestAnimationFrame(() => requestAnimationFrame(() => fill(score))); // once it is drawn as it was
  return h("span", { class: "share", "aria-hidden": "true" }, filled);
}
