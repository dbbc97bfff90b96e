// People of a clip as the service tells them, also window by window: where each is at a time, and what they do.

const GAP_S = 0.5; // between two sightings of somebody who was there all the time
const NEAR_S = 0.06; // from a sighting; what lies farther from both is interpolated

export const COLOURS = ["#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#008080", "#9a6324", "#808000"];
export const colourOf = (person) => COLOURS[(person - 1) % COLOURS.length];

export class People {
  #known = new Map(); // number → {person, boxes, poses, actions}, each sorted by time

  clear() {
    this.#known.clear();
  }

  /** All of them, by number. */
  get all() {
    return [...this.#known.values()].sort((a, b) => a.person - b.person);
  }

  /** What is told anew adds to what is known, and replaces what is told of the same second. */
  add(people) {
    for (const { person, boxes, poses = [], actions } of people) {
      if (!this.#known.has(person)) this.#known.set(person, { person, boxes: [], poses: [], actions: [] });
      const known = this.#known.get(person);
      const last = known.boxes.at(-1)?.[0] ?? -Infinity;
      known.boxes.push(...boxes.filter(([time]) => time > last));
      known.poses.push(...poses.filter(([time]) => time > last));
      const seconds = new Map([...known.actions, ...actions].map((second) => [second.start_s, second]));
      known.actions = [...seconds.values()].sort((a, b) => a.start_s - b.start_s);
    }
  }
}

/** Where somebody is: {box: [x, y, width, height], pose: [[x, y, score], …] or null, interpolated}, or null where they are not seen. */
export function placeAt({ boxes, poses }, time) {
  const after = boxes.findIndex(([seen]) => seen >= time);
  const [right, left] = after < 0 ? [null, boxes.length - 1] : [after, after - 1];
  if (right !== null && left >= 0 && boxes[right][0] - boxes[left][0] <= GAP_S) {
    const share = (time - boxes[left][0]) / (boxes[right][0] - boxes[left][0]);
    const pose = poses[left] && poses[right] ? poses[left][1].map((point, k) => between(point, poses[right][1][k], share)) : null;
    const interpolated = Math.min(time - boxes[left][0], boxes[right][0] - time) > NEAR_S;
    return { box: between(boxes[left].slice(1, 5), boxes[right].slice(1, 5), share), pose, interpolated };
  }
  const nearest = [left, right].find((index) => index !== null && index >= 0 && Math.abs(boxes[index][0] - time) <= NEAR_S);
  return nearest === undefined ? null : { box: boxes[nearest].slice(1, 5), pose: poses[nearest]?.[1] ?? null, interpolated: false };
}

/** Labels of somebody at a time, best first, of at least this score; the best of an unsure second says so. */
export function labelsAt({ actions }, time, least) {
  const second = judgedAt({ actions }, time);
  return (second?.labels ?? []).filter(({ score }) => score >= least).map((one, rank) => ({ ...one, label: rank ? one.label : named(second) }));
}

const judgedAt = ({ actions }, time) => actions.find(({ start_s: start, end_s: end }) => start <= time && time < end);

/** Whether something is known of what somebody does at a time, were it that no label fits. */
export const isJudged = (person, time) => judgedAt(person, time) !== undefined;

/**
 * Times of which nothing is known, as [from, to]: all that is not judged while more is to come, afterwards what was seen and not judged.
 * duration: of the clip, in seconds.
 */
export function unjudged({ boxes, actions }, duration, running) {
  const [first, last] = running ? [0, duration] : [boxes[0]?.[0] ?? 0, boxes.at(-1)?.[0] ?? 0];
  const gaps = [];
  let from = first;
  for (const { start_s: start, end_s: end } of [...actions, { start_s: last, end_s: last }]) {
    if (start - from > NEAR_S) gaps.push([from, Math.min(start, last)]);
    from = Math.max(from, end);
  }
  return gaps;
}

/** Seconds one after the other with the same best label: [{start, end, label, score}], score their mean. */
export function segments({ actions }, least) {
  const joined = [];
  for (const second of actions) {
    const { start_s: start, end_s: end, labels } = second;
    if (!labels.length || labels[0].score < least) continue;
    const [label, score] = [named(second), labels[0].score];
    const last = joined.at(-1);
    if (last && last.label === label && start - last.end < 1e-6) {
      last.end = end;
      last.scores.push(score);
    } else joined.push({ start, end, label, scores: [score] });
  }
  return joined.map(({ scores, ...segment }) => ({ ...segment, score: scores.reduce((sum, score) => sum + score, 0) / scores.length }));
}

/** The best label of a second. */
function named({ labels, unsure }) {
  return unsure ? `${labels[0].label}, unsure` : labels[0].label;
}

function between(a, b, share) {
  return a.map((value, index) => value + share * (b[index] - value));
}
