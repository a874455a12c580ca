// Small helpers: elements by id, new elements, calls of the server.
export const $ = id => document.getElementById(id);
export const session = { key: null };

export class Problem extends Error {
  constructor(status, message) { super(message); this.status = status; }
}

// The text is set as text: words of the catalogue are never read as HTML.
export function make(tag, text, kind) {
  const node = document.createElement(tag);
  if (text !== undefined) node.textContent = text;
  if (kind) node.className = kind;
  return node;
}

export function button(text, label, work) {
  const node = make("button", text);
  node.type = "button";
  node.setAttribute("aria-label", label);
  node.onclick = work;
  return node;
}

const pause = seconds => new Promise(done => setTimeout(done, 1000 * seconds));

export async function call(path, body, method = "POST", retries = 2) {
  const headers = body ? { "content-type": "application/json" } : {};
  if (session.key) headers.authorization = "Bearer " + session.key;
  let reply;
  try { reply = await fetch(path, { method, headers, body: body && JSON.stringify(body) }); }
  catch { throw new Problem(0, "The server does not answer. It may have stopped, or the network is away."); }
  if (reply.status === 429 && retries) {
    await pause(Number(reply.headers.get("retry-after")) || 1);
    return call(path, body, method, retries - 1);
  }
  const answer = await reply.json().catch(() => ({}));
  if (reply.ok) return answer;
  const known = { 401: "That key is not valid.", 429: "The server is busy. Try again in a moment.", 504: "The server took too long. Try again." };
  throw new Problem(reply.status, known[reply.status] || "The server could not answer: " + (answer.message || "error " + reply.status));
}
