"use strict";
// A click on a column's name sorts a table by it: numbers from the largest on, words from A on, a second click turns
// the order round. What is no number in a column of numbers stays last.
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  const number = (text) => /^[+-]?[\d,.]+/.test(text) ? parseFloat(text.replaceAll(",", "")) : NaN;
  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
    const rows = [...body.rows].map((row) => [row, row.cells[column].textContent.trim()]);
    const numeric = column > 0 && rows.some(([, text]) => !isNaN(number(text)));
    const first = numeric ? "descending" : "ascending", second = numeric ? "ascending" : "descending";
    const order = head.getAttribute("aria-sort") === first ? second : first;
    const turn = order === "ascending" ? 1 : -1;
    rows.sort(([, a], [, b]) => {
      if (!numeric) return turn * a.localeCompare(b, "en", {numeric: true});
      const [x, y] = [number(a), number(b)];
      return isNaN(x) || isNaN(y) ? isNaN(x) - isNaN(y) : turn * (x - y);
    });
    heads.forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", order);
    body.append(...rows.map(([row]) => row));
  }));
}
