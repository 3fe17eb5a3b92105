/** The service's HTTP interface: JSON in, JSON out, one kind of error. */

const KEY = "dml-key";

/** An error of the service, or that it cannot be reached. */
export class ServiceError extends Error {
  /**
   * @param {{code: string, must: string, got?: string, do?: string, request_id?: string, write_committed?: boolean}} problem
   * @param {number} status HTTP status; 0 where there was no answer
   */
  constructor(problem, status) {
    super(problem.must);
    this.name = "ServiceError";
    this.problem = problem;
    this.status = status;
  }
}

/** The key of this tab, kept until the tab is closed. */
export function key() {
  return sessionStorage.getItem(KEY) ?? "";
}

/** @param {string} value empty: none */
export function setKey(value) {
  if (value) sessionStorage.setItem(KEY, value);
  else sessionStorage.removeItem(KEY);
}

/** Headers that every request has. */
export function headers(more = {}) {
  return key() ? { ...more, Authorization: `Bearer ${key()}` } : more;
}

/** A part of a path, such as an id with slashes, dots and quotes. */
export function part(value) {
  return encodeURIComponent(value);
}

/**
 * Ask the service.
 *
 * @param {string} method
 * @param {string} path below /v1
 * @param {{body?: unknown, query?: Object<string, unknown>, signal?: AbortSignal}} [options]
 * @returns {Promise<any>}
 * @throws {ServiceError}
 */
export async function ask(method, path, { body, query = {}, signal } = {}) {
  const url = address(path, query);
  const sent = body === undefined ? {} : { body: JSON.stringify(body) };
  const more = body === undefined ? {} : { "Content-Type": "application/json" };
  let response;
  try {
    response = await fetch(url, { method, headers: headers(more), signal, cache: "no-store", ...sent });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServiceError({ code: "offline", must: "The service must answer", got: "there was no answer", do: "Check that dml serve runs, and your network; then try again." }, 0);
  }
  if (response.ok) return response.status === 204 ? null : response.json();
  const answer = await response.json().catch(() => null);
  const unknown = { code: "error", must: "The service must answer with JSON", got: `status ${response.status}`, do: "Look into its log." };
  throw new ServiceError(answer?.error ?? unknown, response.status);
}

/** The address of something below /v1; values that are null or empty are left out. */
export function address(path, query = {}) {
  const parameters = new URLSearchParams();
  for (const [name, value] of Object.entries(query)) {
    if (value !== null && value !== undefined && value !== "") parameters.set(name, String(value));
  }
  const text = parameters.toString();
  return `/v1/${path}${text && "?"}${text}`;
}

export const indexes = {
  list: () => ask("GET", "indexes"),
  detail: (name) => ask("GET", `indexes/${part(name)}`),
  search: (name, request, signal) => ask("POST", `indexes/${part(name)}/search`, { body: request, signal }),
  verify: (name, request) => ask("POST", `indexes/${part(name)}/verify`, { body: request }),
  enrol: (name, request) => ask("POST", `indexes/${part(name)}/enrol`, { body: request }),
  item: (name, id) => ask("GET", `indexes/${part(name)}/items/${part(id)}`),
  forgetItem: (name, id) => ask("DELETE", `indexes/${part(name)}/items/${part(id)}`),
  forgetIdentity: (name, identity) => ask("DELETE", `indexes/${part(name)}/identities/${part(identity)}`),
  /** The address of an item's picture; null where an answer says that it has none. */
  picture: (name, { id, has_picture }, side) => (has_picture ? address(`indexes/${part(name)}/pictures/${part(id)}`, { side }) : null),
  /** The same of an item that no answer is known of; null also where there is no such item. */
  async findPicture(name, id, side) {
    const item = await indexes.item(name, id).catch(() => null);
    return item && indexes.picture(name, { id, has_picture: item.picture !== null }, side);
  },
};

export const datasets = {
  list: () => ask("GET", "datasets"),
  detail: (name) => ask("GET", `datasets/${part(name)}`),
  items: (name, request, signal) => ask("POST", `datasets/${part(name)}/items`, { body: request, signal }),
  quarantine: (name, page) => ask("GET", `datasets/${part(name)}/quarantine`, { query: page }),
  suspects: (name, page) => ask("GET", `datasets/${part(name)}/suspected_labels`, { query: page }),
  nearDuplicates: (name, page) => ask("GET", `datasets/${part(name)}/near_duplicates`, { query: page }),
  corrections: (name, page) => ask("GET", `datasets/${part(name)}/corrections`, { query: page }),
  correct: (name, id, label) => ask("POST", `datasets/${part(name)}/corrections`, { body: { id, label } }),
  remove: (name, id) => ask("POST", `datasets/${part(name)}/removals`, { body: { id } }),
  revoke: (name, id) => ask("POST", `datasets/${part(name)}/revocations`, { body: { id } }),
  picture: (name, id, side) => address(`datasets/${part(name)}/picture`, { id, side }),
};

export const lineage = () => ask("GET", "lineage");
