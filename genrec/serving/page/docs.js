// The API page, made from openapi.json.
"use strict";
const make = (tag, text) => { const node = document.createElement(tag); if (text !== undefined) node.textContent = text; if (tag === "pre") node.tabIndex = 0; return node; };
fetch("openapi.json").then(reply => reply.json()).then(document_ => {
  const schemas = document_.components.schemas, main = document.getElementById("routes"), groups = new Map();
  for (const [path, operations] of Object.entries(document_.paths)) for (const [method, operation] of Object.entries(operations)) {
    const box = make("details"), line = make("summary");
    line.append(make("b", method.toUpperCase()), make("code", path), make("span", " " + operation.summary));
    box.append(line, make("p", operation.description || ""));
    const body = operation.requestBody?.content["application/json"]?.schema.$ref?.split("/").pop();
    if (body) box.append(make("p", "Body " + body + ". Example:"), make("pre", JSON.stringify(schemas[body].examples?.[0] ?? {}, null, 2)), make("p", "Fields:"), make("pre", Object.entries(schemas[body].properties).map(([name, one]) => name + (one.description ? ": " + one.description : "")).join("\n")));
    const tag = operation.tags?.[0] ?? "other";
    groups.set(tag, [...(groups.get(tag) ?? []), box]);
  }
  main.replaceChildren(...[...groups].flatMap(([tag, boxes]) => [make("h2", tag), ...boxes]));
}).catch(() => { document.getElementById("routes").textContent = "The server does not answer."; });
