// A clip, a sound, or a clip with a sound of its own, played on one axis of time.

import { h } from "../../dom.js";
import { SeekQueue } from "../seek_queue.js";

export class Player {
  #urls = [];
  #seeks;
  #known = 1; // seconds, where the browser cannot tell

  /** ontime(seconds): another moment is shown. */
  constructor(ontime) {
    this.video = h("video", { controls: true, playsInline: true, hidden: true, "aria-label": "The clip" });
    this.audio = h("audio", { controls: true, hidden: true, "aria-label": "The sound" });
    this.words = h("p", { class: "caption" }, "The clip or the sound appears here, with its scores over time.");
    this.element = h("figure", {}, h("div", { class: "clip player" }, this.video), this.audio, this.words);
    this.main = this.audio;
    this.#seeks = new Map([this.video, this.audio].map((media) => [media, new SeekQueue(media)]));
    for (const [name, act] of [
      ["play", () => this.#beside((audio) => audio.play().catch(() => {}))],
      ["pause", () => this.#beside((audio) => audio.pause())],
      ["seeked", () => this.#beside((audio) => (audio.currentTime = this.video.currentTime))],
    ])
      this.video.addEventListener(name, act);
    for (const media of [this.video, this.audio])
      for (const name of ["timeupdate", "seeked"]) media.addEventListener(name, () => media === this.main && ontime(this.time));
  }

  /** clip, sound: files or null. Resolves when it is known whether the browser can play them. */
  async load(clip, sound) {
    for (const url of this.#urls.splice(0)) URL.revokeObjectURL(url);
    this.main = clip ? this.video : this.audio;
    const [sees, hears] = [await this.#take(this.video, clip), await this.#take(this.audio, sound)];
    this.video.hidden = !sees;
    this.video.muted = Boolean(clip && sound);
    this.audio.hidden = !hears || Boolean(clip && sees); // then it follows the clip
    const names = [clip, sound].filter(Boolean).map(({ name }) => name);
    const plays = clip ? sees : hears;
    this.words.textContent = plays ? names.join(" and ") : names.length ? `This browser cannot play ${names[0]}. The service may be able to read it.` : "";
  }

  get plays() {
    return this.main.readyState > 0;
  }

  get time() {
    return this.main.currentTime;
  }

  get duration() {
    const known = [this.video, this.audio].map((media) => (media.readyState > 0 ? media.duration : NaN)).filter(Number.isFinite);
    return this.plays && known.length ? Math.max(...known) : this.#known;
  }

  /** How long it is, as far as the service tells. */
  set known(seconds) {
    this.#known = seconds;
  }

  seek(seconds) {
    if (this.plays) this.#seeks.get(this.main).to(Math.max(0, Math.min(this.duration, seconds)));
  }

  #beside(act) {
    if (this.main === this.video && this.audio.readyState > 0) act(this.audio);
  }

  async #take(media, file) {
    if (!file) {
      media.removeAttribute("src");
      media.load();
      return false;
    }
    const url = URL.createObjectURL(file);
    this.#urls.push(url);
    return new Promise((resolve) => {
      media.onloadedmetadata = () => resolve(media === this.audio || media.videoWidth > 0);
      media.onerror = () => resolve(false);
      media.src = url;
    });
  }
}
