// The demo page. A visitor picks a person, sees what the model expects them to want, and searches as that person.
import { combobox } from "./combobox.js";
import { $, call, make, session } from "./dom.js";
import { name, showBaselines, showGhosts, showHistory, showResults, shownColumns, whyLines } from "./lists.js";
import { showTree } from "./tree.js";

const PEOPLE = 5, LIST = 10, WIDTH = 12, NEWEST = 200;
const state = { history: [], hidden: [], query: "", before: null, turn: 0, columns: [], suggests: false, compare: false, retry: start };

const person = () => ({ history: state.history.slice(-NEWEST).map(({ item_id, timestamp, action, query }) => timestamp === undefined ? item_id : { item_id, timestamp, action, query }) });
const asked = () => state.query ? { ...person(), query: state.query } : person();
const unwanted = () => state.hidden.length ? { filters: { blocked: state.hidden.map(item => item.item_id) } } : {};

// Runs what a visitor asked for; a failure is shown with a way to try again.
async function act(work) {
  $("problem").hidden = true;
  try { await work(); }
  catch (error) {
    if (error.status === 401) { askKey(session.key ? error.message : ""); return; }
    state.retry = work;
    $("problem").querySelector("p").textContent = error.message;
    $("problem").hidden = false;
    if ($("results").querySelector(".ghost")) $("results").replaceChildren();
  }
}
function askKey(message) {
  $("main").hidden = true;
  $("keyed").hidden = false;
  session.key = null;
  if (message) { $("problem").querySelector("p").textContent = message; $("problem").querySelector("button").hidden = true; $("problem").hidden = false; }
  $("key").focus();
}

async function refresh() {
  const turn = ++state.turn, results = $("results");
  results.setAttribute("aria-busy", "true");
  results.classList.add("busy");
  if (!results.children.length) showGhosts();
  try {
    const body = { ...asked(), ...unwanted(), k: LIST, fields: state.columns, reasons: true };
    const [answer, walk, simple] = await Promise.all([
      call(state.query ? "v1/search" : "v1/recommend", body),
      call("v1/walk", { ...asked(), width: WIDTH, exclude_seen: !state.query, blocked: state.hidden.map(item => item.item_id) }),
      state.compare ? call("v1/baselines", { k: LIST, ...unwanted(), ...(state.query ? { query: state.query } : {}) }) : null,
    ]);
    if (turn !== state.turn) return;
    show(answer, walk, simple);
  } catch (error) {
    if (turn === state.turn && results.querySelector(".item")) $("made").textContent = "The list below is the one before.";
    throw error;
  } finally {
    if (turn === state.turn) { results.setAttribute("aria-busy", "false"); results.classList.remove("busy"); }
  }
}

function show(answer, walk, simple) {
  const items = answer.items, ranks = new Map(items.map((item, index) => [item.item_id, index + 1]));
  const popular = answer.source === "popular";
  $("heading-text").textContent = state.query ? "Results for “" + state.query + "”" : popular ? "What is popular" : "What they may want next";
  $("made").textContent = answer.corrected ? "Read as “" + answer.corrected + "”." : popular ? "Nothing is known of this person yet." : state.query && state.history.length ? "The order is this person's: somebody else gets another one." : "";
  $("notice").hidden = items.length > 0 && !answer.no_match;
  $("notice").querySelector("p").textContent = !items.length ? (state.query ? "Nothing matches “" + state.query + "”." : "Nothing is left to recommend.") :
    "Nothing matches “" + state.query + "”. These are the answers without it.";
  $("notice").querySelector("button").hidden = !state.query;
  drawHistory();
  showResults(items, state.before, { like, hide, explain });
  showTree(walk, ranks, itemId => document.querySelector(".item[data-item='" + CSS.escape(itemId) + "'] button").focus());
  $("baselines").hidden = !simple;
  if (simple) showBaselines(simple, ranks);
  state.before = new Set(ranks.keys());
  $("foot").textContent = "Answered by " + state.name + ", bundle " + answer.bundle + "." + (answer.notes.length ? " " + answer.notes.join("; ") + "." : "");
}

const drawHistory = () => showHistory(state.history, item => act(() => change("Removed " + name(item) + ".", () => { state.history = state.history.filter(one => one !== item); })));

// Changes the person, shows the new list, and offers a way back. The focus stays at the same position of the list.
async function change(text, work, position) {
  const old = { history: state.history.slice(), hidden: state.hidden.slice(), query: state.query };
  work();
  $("query").value = state.query;
  await refresh();
  const box = $("undo"), undo = box.querySelector("button");
  box.querySelector("span").textContent = text;
  box.classList.add("open");
  undo.hidden = false;
  undo.onclick = () => act(async () => {
    Object.assign(state, old, { before: null });
    $("query").value = state.query;
    closeUndo();
    await refresh();
    $("heading").focus();
  });
  const rows = document.querySelectorAll("#results .item");
  if (position !== undefined && rows.length) rows[Math.min(position, rows.length - 1)].querySelector("button").focus({ preventScroll: true });
  else if (position === undefined) $("heading").focus({ preventScroll: true });
}
function closeUndo() { $("undo").classList.remove("open"); $("undo").querySelector("button").hidden = true; $("undo").querySelector("span").textContent = ""; }

const like = (item, position) => act(() => change("Liked " + name(item) + ".", () => {
  state.history = [...state.history, { item_id: item.item_id, title: item.title }];
  state.query = "";
}, position));
const hide = (item, position) => act(() => change("Hidden: " + name(item) + ".", () => { state.hidden = [...state.hidden, item]; }, position));
const explain = (item, more, why) => act(async () => {
  if (!why.hidden) { why.hidden = true; more.setAttribute("aria-expanded", "false"); return; }
  why.replaceChildren(...whyLines(await call("v1/explain", { ...asked(), item_id: item.item_id })));
  why.hidden = false;
  more.setAttribute("aria-expanded", "true");
});

async function become(history, chosen) {
  Object.assign(state, { history, hidden: [], query: "", before: null });
  $("query").value = "";
  closeUndo();
  for (const one of $("people").children) one.setAttribute("aria-pressed", String(one === chosen));
  drawHistory(); // at once: the list may not come
  await refresh();
}
async function described(taste) {
  const { items } = await call("v1/search", { query: taste, k: 3 });
  return items.reverse();
}
async function stored(user) {
  const { events } = await call("v1/history", { user_id: user });
  if (!events.length) throw new Error("Nothing is known of a user “" + user + "”.");
  return events.map(event => ({ ...event, action: event.action ?? undefined, query: event.query ?? undefined }));
}

// Example people: popular items of different kinds, each with the two items nearest to it.
async function examples() {
  const { items } = await call("v1/recommend", { k: 60, fields: state.columns.includes("category") ? ["category"] : undefined });
  const seeds = [], kinds = new Set(), kind = item => item.attributes?.category?.[0] ?? item.item_id;
  for (const item of items) if (seeds.length < PEOPLE && !kinds.has(kind(item))) { kinds.add(kind(item)); seeds.push(item); }
  const people = await Promise.all(seeds.map(async seed => [...(await call("v1/similar", { item_id: seed.item_id, k: 2 })).items.reverse(), seed]));
  const card = (title, more, history) => {
    const node = make("button");
    node.type = "button";
    node.onclick = () => act(() => become(history.slice(), node));
    node.setAttribute("aria-pressed", "false");
    node.append(make("b", title), make("span", more || "nothing is known of them"));
    return node;
  };
  $("people").replaceChildren(...people.map(had => card("Likes " + name(had[2] ?? had[0]), had.length > 1 ? "and " + had.slice(0, -1).reverse().map(name).join(", ") : "", had)), card("Somebody new", "", []));
  return people;
}

async function start() {
  showGhosts();
  const about = await call("v1/bundle", undefined, "GET");
  $("keyed").hidden = true;
  $("main").hidden = false;
  Object.assign(state, { columns: shownColumns(about.columns), suggests: about.suggestions, name: about.name });
  $("about").textContent = "It has learnt from what " + (about.users ? about.users.toLocaleString() + " people" : "people") + " did with " + about.items.toLocaleString() + " items. Pick a person: it says what they may want next, and why. Search, and it answers as for that person.";
  const people = await examples(), given = new URLSearchParams(location.search);
  if (given.get("taste")) { $("taste").value = given.get("taste"); await become(await described(given.get("taste"))); }
  else if (given.get("user")) { $("user").value = given.get("user"); await become(await stored(given.get("user"))); }
  else await become((people[0] ?? []).slice(), $("people").children[0]);
  if (given.get("q")) { state.query = $("query").value = given.get("q"); await refresh(); }
}

const search = () => act(async () => { closeSuggestions(); state.query = $("query").value.trim(); state.before = null; closeUndo(); await refresh(); });
const closeSuggestions = combobox(async prefix => state.suggests ? (await call("v1/suggest", { ...person(), prefix, k: 7 })).suggestions.map(one => one.query) : [], search);
$("find").onsubmit = event => { event.preventDefault(); search(); };
$("query").addEventListener("search", () => { if (!$("query").value && state.query) search(); });
$("notice").querySelector("button").onclick = () => { $("query").value = ""; search(); $("query").focus(); };
$("describe").onsubmit = event => { event.preventDefault(); act(async () => { const taste = $("taste").value.trim(); if (taste) await become(await described(taste)); }); };
$("known").onsubmit = event => { event.preventDefault(); act(async () => { const user = $("user").value.trim(); if (user) await become(await stored(user)); }); };
$("keyed").onsubmit = event => { event.preventDefault(); session.key = $("key").value.trim(); $("problem").querySelector("button").hidden = false; act(start); };
$("problem").querySelector("button").onclick = () => act(state.retry);
$("compare").onclick = () => { state.compare = !state.compare; $("compare").setAttribute("aria-pressed", String(state.compare)); act(async () => { await refresh(); if (state.compare) $("baselines").scrollIntoView({ block: "nearest" }); }); };
act(start);
