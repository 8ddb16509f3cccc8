"use strict";
// The graph of a search: a click, a tap or a key shows a program, how it came about and what was measured of it.
for (const graph of document.querySelectorAll(".graph")) {
  const data = JSON.parse(graph.querySelector("script").textContent);
  const byId = new Map(data.nodes.map((node) => [node.id, node]));
  const marks = [...graph.querySelectorAll(".node")];
  const markOf = new Map(marks.map((mark) => [mark.dataset.id, mark]));
  const panel = graph.querySelector(".panel");
  const svg = graph.querySelector("svg");
  const children = new Map();
  for (const edge of data.edges) if (edge.first) children.set(edge.from, [...(children.get(edge.from) || []), edge.to]);

  const made = (tag, text, className) => {
    const element = document.createElement(tag);
    if (text !== undefined) element.textContent = text;
    if (className) element.className = className;
    return element;
  };
  const signed = (value) => (value >= 0 ? "+" : "\u2212") + Math.abs(value).toFixed(4);

  function row(list, name, value) {
    if (value === undefined || value === null || value === "") return;
    list.append(made("dt", name));
    const cell = made("dd");
    cell.append(value);
    list.append(cell);
  }

  function link(id) {
    const node = byId.get(id);
    const button = made("button", node ? `${node.name} (${id.slice(0, 8)})` : id);
    button.type = "button";
    button.addEventListener("click", () => choose(id, true));
    return button;
  }

  function show(node) {
    const list = made("dl");
    const where = node.damage === null ? "not measured" : `${node.damage.toFixed(4)} nats a token, ${node.rung === data.last ? "measured at" : "forecast from"} ${node.rung}`;
    row(list, "Damage", where);
    if (node.error) row(list, "Failed", node.error);
    if (node.same_as) row(list, "Does the same as", link(node.same_as));
    const parents = made("span");
    node.parents.forEach((id, index) => parents.append(index ? " and " : "", link(id)));
    if (node.parents.length) row(list, "Made from", parents);
    row(list, "By", node.operator);
    row(list, "Proposer", node.model);
    row(list, "Diagnosis", node.diagnosis);
    row(list, "Hypothesis", node.hypothesis);
    if (node.predicted !== undefined && node.predicted !== null) row(list, "Predicted", `${signed(node.predicted)} nats a token`);
    if (node.observed !== undefined && node.observed !== null) row(list, "Observed", `${signed(node.observed)} ± ${(node.noise || 0).toFixed(4)} nats a token`);
    row(list, "Verdict", node.verdict);
    for (const [rung, found] of Object.entries(node.figures))
      row(list, rung, found.error || (found.damage === null ? "not measured" : `${found.damage.toFixed(4)} in ${(found.seconds || 0).toFixed(2)} s`));
    row(list, "Made of", node.traits.join(", "));
    panel.replaceChildren(made("h4", `${node.name} · ${node.id}`), made("pre", node.program, "wrap"), list);
    panel.scrollTop = 0;
  }

  function choose(id, move) {
    const node = byId.get(id), mark = markOf.get(id);
    if (!node) return;
    const way = new Set();
    for (let at = node, seen = new Set(); at && at.parents.length && !seen.has(at.id); at = byId.get(at.parents[0])) {
      seen.add(at.id);
      way.add(`${at.parents[0]} ${at.id}`);
    }
    svg.classList.add("chosen");
    for (const edge of svg.querySelectorAll(".edge")) edge.classList.toggle("way", way.has(`${edge.dataset.from} ${edge.dataset.to}`));
    for (const other of marks) {
      const on = other === mark;
      other.classList.toggle("on", on);
      other.setAttribute("aria-pressed", on);
      other.setAttribute("tabindex", on ? "0" : "-1");
    }
    show(node);
    const plot = svg.parentElement;
    plot.scrollLeft = (node.x / data.width) * svg.clientWidth - plot.clientWidth / 2;
    if (move) mark.focus({ preventScroll: false });
  }

  function key(event) {
    const index = marks.indexOf(event.currentTarget), node = byId.get(event.currentTarget.dataset.id);
    const next = {
      ArrowRight: marks[index + 1], ArrowLeft: marks[index - 1], Home: marks[0], End: marks[marks.length - 1],
      ArrowUp: markOf.get(node.parents[0]), ArrowDown: markOf.get((children.get(node.id) || [])[0]),
      Enter: event.currentTarget, " ": event.currentTarget,
    }[event.key];
    if (!next) return;
    event.preventDefault();
    choose(next.dataset.id, true);
  }

  for (const mark of marks) {
    mark.addEventListener("click", () => choose(mark.dataset.id, false));
    mark.addEventListener("keydown", key);
  }
  for (const button of graph.parentElement.querySelectorAll("[data-choose]"))
    button.addEventListener("click", () => choose(button.dataset.choose, true));
  choose(data.best || data.nodes[0].id, false);
}

// Texts: a touched token tells its figures below the text.
for (const text of document.querySelectorAll(".text")) {
  text.addEventListener("click", (event) => {
    const token = event.target.closest("span[title]");
    if (token) text.nextElementSibling.textContent = `\u201c${token.textContent}\u201d: ${token.title}`;
  });
}
