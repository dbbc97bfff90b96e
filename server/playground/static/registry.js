// The tabs that there can be: one line and one module for each task. A tab shows when a ready bundle serves its task.
//
// A module exports mount(panel, models): it fills the panel, for the ready bundles of its task as GET /v1/models lists them, and returns
// a Runner (runner.js). It is loaded when its tab is opened for the first time.

export const TABS = [
  { task: "classify", title: "Classify", load: () => import("./tasks/classify.js") },
  { task: "inpaint", title: "Inpaint", load: () => import("./tasks/inpaint.js") },
  { task: "reconstruct", title: "3D", load: () => import("./tasks/reconstruct.js") },
  { task: "actions", title: "Actions", load: () => import("./tasks/actions.js") },
];
