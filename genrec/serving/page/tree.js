// The beam's way down the tree of codes, as an outline: each line is a group of items, named by the words they share.
import { $, make } from "./dom.js";

const words = node => node.keywords.join(", ") || "mixed";

export function showTree(walk, ranks, choose) {
  const list = $("tree").querySelector(".tree"), note = $("tree-note");
  if (!walk.leaves.length) {
    note.textContent = "This model does not generate codes; it compares vectors.";
    list.replaceChildren();
    return;
  }
  note.textContent = "Every item has a code, and items with similar words share its beginning. The model reads the person and walks down these groups, best first, to single items. Point at a result to see its way.";
  const children = new Map(), known = new Map();
  for (const nodes of walk.levels) for (const node of nodes) {
    known.set(node.node, node);
    children.set(node.parent, [...(children.get(node.parent) || []), node]);
  }
  const leaves = new Map(walk.leaves.map(leaf => [leaf.node, leaf]));

  function leafRows(node) {
    for (let below; !leaves.has(node.node); node = below) below = children.get(node.node)[0];
    return leaves.get(node.node).items.map(item => {
      const row = make("li"), rank = ranks.get(item.item_id), name = item.title || item.item_id;
      row.dataset.item = item.item_id;
      const leaf = make(rank ? "button" : "span", undefined, "leaf");
      if (rank) {
        leaf.type = "button";
        leaf.onclick = () => choose(item.item_id);
        for (const kind of ["mouseenter", "focus"]) leaf.addEventListener(kind, () => light(item.item_id));
        for (const kind of ["mouseleave", "blur"]) leaf.addEventListener(kind, () => light(null));
        leaf.append(make("b", String(rank)), " ");
      }
      leaf.append(name);
      row.append(leaf);
      return row;
    });
  }
  function rows(node) {
    let below = children.get(node.node) || [];
    // A group that leads to one group alone, or of one item, is not worth a line of its own.
    while (below.length === 1 && below[0].items === node.items) { node = below[0]; below = children.get(node.node) || []; }
    if (node.items === 1 || !below.length) return leafRows(node);
    const row = make("li"), line = make("span", words(node) + " ", "words"), inner = make("ul");
    line.append(make("small", "(" + node.items + " items)"));
    inner.append(...below.flatMap(rows));
    row.append(line, inner);
    return [row];
  }
  list.replaceChildren(...(children.get(0) || walk.levels[0]).flatMap(rows));
}

// Marks the way to an item in the tree, and the item in the list.
export function light(itemId) {
  document.querySelectorAll(".lit").forEach(node => node.classList.remove("lit"));
  $("tree-way").textContent = "";
  if (itemId === null) return;
  const leaf = document.querySelector(".tree li[data-item='" + CSS.escape(itemId) + "']");
  if (!leaf && document.querySelector(".tree li")) $("tree-way").textContent = "The walk does not end at this result: the comparison of vectors, items had together or matching words proposed it.";
  for (let node = leaf; node && node.matches(".tree li"); node = node.parentElement.closest("li")) node.classList.add("lit");
  const row = document.querySelector(".item[data-item='" + CSS.escape(itemId) + "']");
  if (row) row.classList.add("lit");
}
