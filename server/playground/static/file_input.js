// The place for a file that the user gives: dropped, pasted, picked, or one of the samples.

import { at } from "./api.js";
import { h } from "./dom.js";

/**
 * samples: [{name, label, thumbnail?, …}], files under static/samples, the thumbnail where it is not the file itself; stage: what shows the
 * file once it is there; accept: as <input type=file> has it; multiple: whether several may come at once; block(reason): nothing may run, until
 * onfile(file, sample or null) says otherwise.
 */
export function fileInput(panel, { samples, stage, invitation, accept, multiple = false, block, onfile }) {
  const input = h("input", { type: "file", accept, multiple, class: "unseen", onchange: () => receive(input.files) });
  const drop = h(
    "label",
    { class: "drop" },
    input,
    h("strong", {}, invitation),
    h("span", {}, multiple ? "Drop them here, paste them, or click to choose files" : "Drop it here, paste it, or click to choose a file"),
  );
  const shelf = h("ul", { class: "samples", "aria-label": "Samples" });
  for (const sample of samples) {
    const src = at(`static/samples/${sample.thumbnail ?? sample.name}`);
    const button = h(
      "button",
      { type: "button", title: sample.label, onclick: () => takeSample(sample) },
      h("img", { src, alt: sample.label, width: 56, height: 56, loading: "lazy" }),
    );
    shelf.append(h("li", {}, button));
  }
  const source = h("a", { href: at("static/samples/SOURCES.txt"), class: "sources" }, "sources");

  const dropped = (event) => {
    event.preventDefault();
    box.classList.remove("over");
    receive(event.dataTransfer.files);
  };
  const box = h(
    "div",
    {
      class: "picture",
      ondragover: (event) => (event.preventDefault(), box.classList.add("over")),
      ondragleave: () => box.classList.remove("over"),
      ondrop: dropped,
    },
    stage,
    drop,
    h("div", { class: "shelf" }, h("span", {}, "or try"), shelf, source),
  );
  document.addEventListener("paste", (event) => {
    if (!panel.hidden) receive(event.clipboardData.files);
  });
  return box;

  function takeSample(sample) {
    return take(() => fetchSample(sample.name), sample);
  }

  async function receive(files) {
    for (const given of [...files].slice(0, multiple ? undefined : 1)) await take(() => given, null);
  }

  /** Meanwhile nothing can run: it would run on what was there before, or on a half of each. */
  async function take(read, sample) {
    block("Reading the file");
    try {
      const given = await read();
      box.classList.add("full");
      await onfile(given, sample);
    } catch (error) {
      block("It could not be read. Choose it again, or another one.");
      throw error;
    }
  }
}

/** A sample as if the user had chosen it. */
export async function fetchSample(name) {
  const answer = await fetch(at(`static/samples/${name}`));
  return new File([await answer.blob()], name);
}
