"use strict";
// Tables are sorted by a click on the head of a column, and the points of the figure say what they are below it.
const number = (text) => parseFloat(text.replaceAll(",", ""));
for (const table of document.querySelectorAll("table")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const sort = () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      const text = (row) => row.cells[column].textContent.trim();
      const [full, empty] = [[], []];
      for (const row of table.tBodies[0].rows) (text(row) ? full : empty).push(row);
      const numbers = full.every((row) => !Number.isNaN(number(text(row))));
      full.sort((a, b) => (numbers ? number(text(a)) - number(text(b)) : text(a).localeCompare(text(b))));
      table.tBodies[0].append(...(down ? full.reverse() : full), ...empty);
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
    };
    head.tabIndex = 0;
    head.addEventListener("click", sort);
    head.addEventListener("keydown", (event) => event.key === "Enter" && sort());
  });
}
for (const point of document.querySelectorAll(".point")) {
  const tell = () => { document.querySelector(".told").textContent = point.querySelector("title").textContent; };
  point.addEventListener("pointerenter", tell);
  point.addEventListener("click", tell);
}
