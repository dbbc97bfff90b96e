// Server-sent events out of text that arrives in pieces.

export class EventParser {
  #rest = "";

  /** The events that `text` completes, their data parsed as JSON. */
  *feed(text) {
    const blocks = (this.#rest + text).split("\n\n");
    this.#rest = blocks.pop();
    for (const block of blocks) {
      const fields = Object.fromEntries(
        block.split("\n").map((line) => [line.slice(0, line.indexOf(":")), line.slice(line.indexOf(":") + 1).trim()]),
      );
      if (fields.event) yield { name: fields.event, data: JSON.parse(fields.data) };
    }
  }
}
