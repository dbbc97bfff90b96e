// The tabs that there can be: one line and one module for each task. A tab shows when a ready bundle serves its task, or one of `tasks` where
// it has several, or what `serves` says; where it is `always` there, its module says what is missing.
//
// A module exports mount(panel, models, folders): it fills the panel, for the ready bundles of its tasks and the folders of bundles as
// GET /v1/models lists them, and returns a TaskRunner (task_runner.js), or a promise of one. It is loaded when its tab is opened for the first time.

export const TABS = [
  { task: "classify", title: "Classify", load: () => import("./tasks/classify/tab.js") },
  { task: "inpaint", title: "Inpaint", load: () => import("./tasks/inpaint/tab.js") },
  { task: "reconstruct", title: "3D", load: () => import("./tasks/reconstruct/tab.js") },
  { task: "actions", title: "Actions", load: () => import("./tasks/actions/tab.js") },
  {
    task: "clips",
    title: "Clips and sound",
    serves: ({ route, inputs }) => route === "classify" && inputs.some(({ kind }) => kind !== "image"),
    always: true,
    load: () => import("./tasks/clips/tab.js"),
  },
  {
    task: "words",
    title: "Words",
    tasks: ["zero-shot", "embed", "autoencode"],
    always: true,
    load: () => import("./tasks/words/tab.js"),
  },
];
