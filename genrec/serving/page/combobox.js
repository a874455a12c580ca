// Suggestions below the search field: the ARIA combobox pattern, by mouse and keyboard.
import { $, make } from "./dom.js";

export function combobox(ask, choose) {
  const input = $("query"), list = $("suggestions");
  let typing, turn = 0, active = -1, known = [];

  function close() { turn++; clearTimeout(typing); list.hidden = true; input.setAttribute("aria-expanded", "false"); input.removeAttribute("aria-activedescendant"); active = -1; }
  function mark(index) {
    active = index;
    [...list.children].forEach((option, number) => option.setAttribute("aria-selected", String(number === index)));
    if (index >= 0) input.setAttribute("aria-activedescendant", list.children[index].id);
    else input.removeAttribute("aria-activedescendant");
  }
  function open(queries) {
    known = queries;
    list.replaceChildren(...queries.map((query, index) => {
      const option = make("li", query);
      option.id = "suggestion-" + index;
      option.setAttribute("role", "option");
      option.setAttribute("aria-selected", "false");
      option.onmousedown = event => { event.preventDefault(); take(index); };
      return option;
    }));
    active = -1;
    list.hidden = !queries.length;
    input.setAttribute("aria-expanded", String(queries.length > 0));
  }
  function take(index) { input.value = known[index]; close(); choose(); }
  async function look() {
    const mine = ++turn;
    const queries = await ask(input.value.trim()).catch(() => []);
    if (mine === turn && document.activeElement === input) open(queries);
  }
  function later() { clearTimeout(typing); typing = setTimeout(look, 150); }

  input.oninput = later;
  input.onfocus = later;
  input.onblur = close;
  input.onkeydown = event => {
    if (event.key === "Escape" && !list.hidden) { event.preventDefault(); close(); return; }
    if (event.key === "Enter" && active >= 0) { event.preventDefault(); take(active); return; }
    if (event.key !== "ArrowDown" && event.key !== "ArrowUp") return;
    event.preventDefault();
    if (list.hidden) { look(); return; }
    const n = list.children.length, step = event.key === "ArrowDown" ? 1 : -1;
    mark(active < 0 ? (step > 0 ? 0 : n - 1) : (active + step + n) % n);
  };
  return close;
}
