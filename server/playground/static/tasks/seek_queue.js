// Seeks of a video or a sound, one at a time: where several overlap, Chromium may seek for ever.

export class SeekQueue {
  #next = null;

  constructor(media) {
    this.media = media;
    media.addEventListener("seeked", () => this.#go());
    media.addEventListener("emptied", () => (this.#next = null)); // another file
  }

  /** Seconds where it stands, or will once its seeks are over. */
  get time() {
    return this.#next ?? this.media.currentTime;
  }

  /** Of several that are asked for while one goes on, the last one follows it. */
  to(time) {
    this.#next = time;
    if (!this.media.seeking) this.#go();
  }

  #go() {
    if (this.#next === null) return;
    this.media.currentTime = this.#next;
    this.#next = null;
  }
}
