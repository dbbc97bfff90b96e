// One job that runs, and what it was asked with, so that it is followed again when the page is loaded again.

const KEY = "job";
const STORE = "inputs";
const MAX_BYTES = 64 * 2 ** 20;

/** sent: {parts: [[part, blob, name], …], options}. Kept until drop(); the files only where they are not too large. */
export async function keep(task, id, sent) {
  const words = sent.parts.map(([part, , name]) => [part, null, name]);
  sessionStorage.setItem(KEY, JSON.stringify({ task, id, sent: { ...sent, parts: words } }));
  const size = sent.parts.reduce((sum, [, blob]) => sum + blob.size, 0);
  await stored("readwrite", (store) => (size <= MAX_BYTES ? store.put({ id, parts: sent.parts }, KEY) : store.delete(KEY)));
}

/** That job, unless another one is kept by now. */
export async function drop(id) {
  if (!isJobSaved(id)) return;
  sessionStorage.removeItem(KEY);
  await stored("readwrite", (store) => store.delete(KEY));
}

/** {id, sent} of the job of a task that was followed before; the files of `sent` are null where they were not kept. null: there is none. */
export async function kept(task) {
  const job = JSON.parse(sessionStorage.getItem(KEY));
  if (job?.task !== task) return null;
  const input = await stored("readonly", (store) => store.get(KEY));
  return input?.id === job.id ? { ...job, sent: { ...job.sent, parts: input.parts } } : job;
}

export const isJobSaved = (id) => JSON.parse(sessionStorage.getItem(KEY))?.id === id;

/** What a request of the store resolves to; undefined where this browser keeps nothing, as in private windows. */
function stored(mode, ask) {
  return new Promise((resolve) => {
    const opening = indexedDB.open("opsin", 1);
    opening.onupgradeneeded = () => opening.result.createObjectStore(STORE);
    opening.onerror = () => resolve();
    opening.onsuccess = () => {
      const transaction = opening.result.transaction(STORE, mode);
      const request = ask(transaction.objectStore(STORE));
      transaction.oncomplete = () => resolve(request.result);
      transaction.onabort = transaction.onerror = () => resolve();
    };
  });
}
