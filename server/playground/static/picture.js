// A picture that the user gives: dropped, pasted, picked, or one of the samples.

import { at } from "./api.js";
import { h } from "./dom.js";

// A picture is {blob, name, bitmap, mask}: `bitmap` is upright, and null where this browser cannot decode it; `mask` is a blob or null.

/**
 * The place for a picture. samples: [{name, label, mask?}] under static/samples; stage: what shows the picture once it is there;
 * onpicture(picture).
 */
export function pictureInput(panel, { samples, stage, onpicture, invitation }) {
  const file = h("input", {
    type: "file",
    accept: "image/*",
    class: "unseen",
    onchange: () => file.files[0] && take(file.files[0], file.files[0].name),
  });
  const drop = h(
    "label",
    { class: "drop" },
    file,
    h("strong", {}, invitation),
    h("span", {}, "Drop it here, paste it, or click to choose a file"),
  );
  const shelf = h("ul", { class: "samples", "aria-label": "Samples" });
  for (const sample of samples) {
    const src = at(`static/samples/${sample.name}`);
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
    const given = event.dataTransfer.files[0];
    if (given) take(given, given.name);
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
    const given = event.clipboardData.files[0];
    if (given && !panel.hidden) take(given, given.name || "pasted.png");
  });

  async function takeSample({ name, mask }) {
    const [blob, hole] = await Promise.all(
      [name, mask].map((each) => each && fetch(at(`static/samples/${each}`)).then((answer) => answer.blob())),
    );
    await take(blob, name, hole ?? null);
  }

  async function take(blob, name, mask = null) {
    const bitmap = await createImageBitmap(blob).catch(() => null);
    box.classList.add("full");
    onpicture({ blob, name, bitmap, mask });
  }

  return box;
}

/** Draws a bitmap into a canvas at the bitmap's own size. */
export function show(canvas, bitmap) {
  canvas.width = bitmap.width;
  canvas.height = bitmap.height;
  canvas.getContext("2d").drawImage(bitmap, 0, 0);
}
