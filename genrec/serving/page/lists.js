// Histories, results and the lists of simple methods.
import { $, button, make } from "./dom.js";
import { light } from "./tree.js";

export const name = item => item.title || item.item_id;
const IMAGES = ["image", "image_url", "img", "poster", "thumbnail"], LENGTH = 60, FACTS = 4;
const plain = value => typeof value === "number" ? value.toLocaleString(undefined, { maximumFractionDigits: 2 }) : String(value);

// The columns that a visitor wants to see of an item, of those that the catalogue has.
export function shownColumns(columns) {
  const names = Object.keys(columns), hidden = ["item_id", "title", "text"];
  const first = names.filter(one => IMAGES.includes(one) || /year/.test(one) || ["category", "brand", "price"].includes(one));
  return [...first, ...names.filter(one => !hidden.includes(one) && !first.includes(one))].slice(0, 12);
}
function year(attributes) {
  const found = Object.entries(attributes).find(([column, value]) => /year/.test(column) && Number.isInteger(value) && value > 1000 && value < 2200);
  return found && found[1];
}
function facts(attributes) {
  const parts = [];
  for (const [column, value] of Object.entries(attributes)) {
    if (IMAGES.includes(column) || /year/.test(column) || value === null || value === "" || Array.isArray(value) && !value.length) continue;
    if (Array.isArray(value)) parts.push(value.join(", "));
    else if (column === "price") parts.push("price " + plain(value));
    else if (column === "brand") parts.push(plain(value));
    else if (plain(value).length <= LENGTH) parts.push(column.replaceAll("_", " ") + " " + plain(value));
  }
  return parts.slice(0, FACTS).join(" · ");
}
function because(item) {
  const near = item.reason?.because ?? [], shared = item.reason?.words ?? [];
  const parts = [];
  if (shared.length) parts.push("has “" + shared.join("”, “") + "”");
  if (near.length) parts.push("because they had “" + name(near[0]) + "”");
  const text = parts.join(" · ");
  return text && text[0].toUpperCase() + text.slice(1);
}

export function showHistory(history, remove) {
  const rows = history.slice(-30).reverse();
  $("history-heading").textContent = "What this person had" + (history.length ? " (" + history.length.toLocaleString() + ")" : "");
  $("history-note").textContent = !history.length ? "Nothing yet, so the list shows what is popular. Like something and it changes." :
    history.length > rows.length ? "The newest " + rows.length + " are shown." : "";
  $("history").replaceChildren(...rows.map(item => {
    const row = make("li");
    row.append(make("span", name(item)), button("×", "Remove " + name(item) + " from the history", () => remove(item)));
    return row;
  }));
}

export function showGhosts() {
  $("results").replaceChildren(...Array.from({ length: 6 }, () => { const row = make("li", undefined, "ghost"); row.setAttribute("aria-hidden", "true"); return row; }));
}

export function showResults(items, before, acts) {
  $("results").replaceChildren(...items.map((item, index) => {
    const row = make("li", undefined, "item"), body = make("div", undefined, "body"), buttons = make("div", undefined, "acts");
    const attributes = item.attributes || {}, picture = IMAGES.map(column => attributes[column]).find(value => typeof value === "string" && /^(https:|data:image)/.test(value));
    row.dataset.item = item.item_id;
    row.append(make("span", String(index + 1), "rank"));
    if (picture) { const image = make("img"); image.src = picture; image.alt = ""; image.loading = "lazy"; image.onerror = () => image.remove(); row.append(image); }
    const title = make("div", name(item), "title"), when = year(attributes), known = facts(attributes), reason = because(item);
    if (when) title.append(" ", make("span", "(" + when + ")"));
    if (before && !before.has(item.item_id)) title.append(" ", make("span", "new", "badge"));
    body.append(title);
    if (known) body.append(make("div", known, "soft"));
    if (reason) body.append(make("div", reason, "because"));
    const why = make("ul", undefined, "why soft"), more = button("Why?", "Why? " + name(item), () => acts.explain(item, more, why));
    why.hidden = true;
    more.setAttribute("aria-expanded", "false");
    buttons.append(button("Like", "Like " + name(item), () => acts.like(item, index)), button("Not for me", "Not for me: " + name(item), () => acts.hide(item, index)), more);
    row.append(body, buttons, why);
    for (const kind of ["mouseenter", "focusin"]) row.addEventListener(kind, () => light(item.item_id));
    for (const kind of ["mouseleave", "focusout"]) row.addEventListener(kind, () => light(null));
    return row;
  }));
}

export function whyLines(why) {
  const lines = why.neighbours.slice(0, 3).filter(one => one.cooccurrence > 0 || one.similarity > 0).map(one => (one.cooccurrence > 0 ? "Often had together with “" : "Similar to “") + name(one) + "”");
  if (why.words.length) lines.push("Has words of the search: " + why.words.join(", "));
  if (!lines.length) lines.push("Nothing in the history is close to it; it is liked by many.");
  if (why.keywords.length) lines.push("Its keywords: " + why.keywords.slice(0, 6).map(one => one.keyword).join(", "));
  const steps = why.path.map(step => step.probability);
  if (steps.length && steps.every(step => step !== null)) {
    const percent = 100 * steps.reduce((product, step) => product * step, 1);
    lines.push("The model generates its code with a probability of " + (percent < 0.01 ? "less than 0.01" : percent.toPrecision(2)) + " %");
  }
  return lines.map(line => make("li", line));
}

export function showBaselines(lists, ours) {
  const titles = { popular: "Most popular", bm25: "Word match (BM25)" };
  $("baselines").querySelector(".columns").replaceChildren(...Object.keys(titles).filter(kind => lists[kind]).map(kind => {
    const column = make("div"), list = make("ol");
    list.append(...lists[kind].map((item, index) => {
      const row = make("li", index + 1 + ". " + name(item) + " ");
      if (ours.has(item.item_id)) { const tick = make("span", "✓", "tick"); tick.setAttribute("role", "img"); tick.setAttribute("aria-label", "also in our list"); row.append(tick); }
      return row;
    }));
    column.append(make("h3", titles[kind]), lists[kind].length ? list : make("p", "No item has a word of the search.", "soft"));
    return column;
  }));
}
