// Server-sent events out of text that arrives in pieces.

export class EventParser {
  #pieces = [];
  #last = ""; // character of the pieces

  /** The events that `text` completes: {id, name, data}, data parsed as JSON. Long events are joined once, however many pieces they have. */
  *feed(text) {
    if (!text) return;
    this.#pieces.push(text);
    const complete = `${this.#last}${text}`.includes("\n\n");
    this.#last = text.at(-1);
    if (!complete) return;
    const blocks = this.#pieces.join("").split("\n\n");
    this.#pieces = [blocks.pop()];
    for (const block of blocks) {
      const fields = Object.fromEntries(
        block.split("\n").map((line) => [line.slice(0, line.indexOf(":")), line.slice(line.indexOf(":") + 1).trim()]),
      );
      if (fields.event) yield { id: fields.id, name: fields.event, data: JSON.parse(fields.data) };
    }
  }
}
