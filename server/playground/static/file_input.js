// The input for a file of the user: dropped anywhere, pasted, chosen, or one of the samples.

import { Problem, at } from "./api.js";
import { h } from "./dom.js";
import { FileRejected } from "./file_checks.js";

const MAX_NAMED = 3; // files

/**
 * samples: [{name, label, model, thumbnail?, …}], files under static/samples, the thumbnail where it is not the file itself; stage: what shows
 * the file once it is there; accept: as <input type=file> has it; multiple: whether several may come at once; block(reason): nothing may run,
 * until onfile(file, sample or null) says otherwise, which raises FileRejected for what it does not take; onsample(): a sample is there.
 * Returns {element, receive(files), filled(), first()}: filled says that a file is there that came in another way, first takes the first sample.
 */
export function fileInput(panel, { samples, stage, invitation, accept, multiple = false, block, onfile, onsample }) {
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
  const refusal = h("p", { class: "refusal", role: "alert", hidden: true });
  const taken = h("p", { class: "taken", role: "status", hidden: true });
  const box = h(
    "div",
    { class: "picture" },
    stage,
    drop,
    refusal,
    taken,
    samples.length ? h("div", { class: "shelf" }, h("span", {}, "Samples"), shelf, source) : null,
  );
  document.addEventListener("paste", (event) => {
    if (!panel.closest("[hidden]")) receive(event.clipboardData.files);
  });
  return { element: box, receive, filled, first: () => takeSample(samples[0]) };

  function filled() {
    box.classList.add("full");
  }

  async function takeSample(sample) {
    if (await take(() => fetchSample(sample.name), sample)) onsample();
  }

  /** Takes files of the user, and says so if not all of them are used. */
  async function receive(given) {
    const files = [...given];
    const names = [];
    for (const file of multiple ? files : files.slice(0, 1)) if (await take(() => file, null)) names.push(file.name);
    input.value = ""; // the same file may be chosen again
    taken.hidden = files.length < 2 || files.length === names.length;
    const told = names.length > MAX_NAMED ? names.length : names.length ? `only ${names.join(" and ")}` : "none";
    taken.textContent = `Of ${files.length} files, ${told} ${names.length > 1 ? "were" : "was"} added.`;
  }

  /** While a file is read, nothing can run: it would use the old input, or a mix. If the file is rejected, the old input stays. */
  async function take(read, sample) {
    const before = block("Reading the file");
    refusal.hidden = true;
    taken.hidden = true;
    let given = null;
    try {
      given = await read();
      await onfile(given, sample);
      filled();
      return true;
    } catch (error) {
      if (!(error instanceof FileRejected || error instanceof Problem)) throw error;
      block(before);
      tell(error, given);
      return false;
    }
  }

  /** Shows why a file is rejected; if another tab accepts it, a button opens it there. */
  function tell(error, given) {
    const tabs = [...document.querySelectorAll("[role=tab]")];
    const other = tabs.find(({ id }) => error.tasks?.some((task) => id === `tab-${task}`));
    refusal.replaceChildren(
      error instanceof Problem ? `${error.title}: ${error.message}` : error.message,
      other ? h("button", { type: "button", onclick: () => offerOtherTab(other.id.slice("tab-".length), given) }, `Open it in ${other.textContent}`) : "",
    );
    refusal.hidden = false;
  }
}

function offerOtherTab(task, file) {
  document.dispatchEvent(new CustomEvent("handover", { detail: { task, file } }));
}

/** Fetches a sample as if the user had chosen it. Raises Problem. */
export async function fetchSample(name) {
  let answer;
  try {
    answer = await fetch(at(`static/samples/${name}`));
  } catch {
    throw new Problem({ title: "The gateway cannot be reached", status: 0, detail: `the sample ${name} could not be loaded` });
  }
  const { ok, status } = answer;
  if (!ok) throw new Problem({ title: `The sample ${name} could not be loaded`, status, detail: `the response was ${status}` });
  return new File([await answer.blob()], name);
}
