// What is missing where the labels of a user cannot be used, and the command that brings it.

import { commandLine, h } from "../../dom.js";

const MAWS = "vit_b16_xlmr_b.pt";
const TOKENIZER = "xlmr.sentencepiece.bpe.model";

/** models: those that give vectors, none of which reads texts; folders: of bundles. */
export function lacking(models, folders) {
  const pair = models.find(({ task }) => task === "zero-shot");
  const folder = `${folders[0] ?? "bundles"}/maws`;
  const words = pair
    ? [`${pair.name}@${pair.version} is a pair of an image encoder and a text encoder, but it has no tokenizer. This command adds one:`]
    : [
        models.length ? "No served bundle supports texts. " : "No served bundle computes vectors of images or texts. ",
        "A pair of an image encoder and a text encoder does, such as MAWS, FLIP or CiT. This command imports MAWS with its tokenizer:",
      ];
  const command = pair
    ? `opsin bundles tokenizer ${pair.name} ${TOKENIZER}`
    : `opsin import ${MAWS} -o '${folder.replaceAll("'", "'\\''")}' --tokenizer ${TOKENIZER} --license CC-BY-NC-4.0`;
  return h(
    "div",
    { class: "hint failed" },
    h("p", {}, words),
    commandLine(command),
    h(
      "p",
      {},
      models.length ? `Then ${pair ? "restart the service and " : ""}reload this page. Search works without texts.` : "To sort images by another image, an image encoder is enough.",
    ),
  );
}
