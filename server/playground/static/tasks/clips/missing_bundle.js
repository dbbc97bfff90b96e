// What is missing where no bundle labels clips or sound, and the command that brings one.

import { commandLine, h } from "../../dom.js";

const MVIT = "MViTv2_S_16x4_k400_f302660347.pyth"; // of SlowFast's model zoo

/** folders: of bundles. */
export function lacking(folders) {
  const folder = `${folders[0] ?? "bundles"}/mvit`.replaceAll("'", "'\\''");
  return h(
    "div",
    { class: "hint failed" },
    h("p", {}, "No served bundle classifies clips or sound. MViT and MAE-ST classify clips, MAViL video and sound. This command imports an MViT:"),
    commandLine(`opsin import ${MVIT} -o '${folder}' --labels kinetics400.txt`),
    h("p", {}, "It is served within seconds; then this tab can be used."),
  );
}
