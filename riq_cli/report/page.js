"use strict";
// Sorts and filters the table of layers, and keeps both in the address: report.html#sort=bytes&order=descending&filter=conv
(() => {
  const table = document.querySelector("table.layers");
  if (!table) return;
  const body = table.tBodies[0];
  const headers = [...table.tHead.rows[0].cells];
  const filter = document.getElementById("filter");
  const state = new URLSearchParams(location.hash.slice(1));

  const value = (row, column) => {
    const cell = row.cells[column];
    return "value" in cell.dataset ? Number(cell.dataset.value) : cell.title || cell.textContent;
  };
  const compare = (a, b) =>
    typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), "en", { numeric: true });

  const sort = (header, order) => {
    const column = headers.indexOf(header);
    const sign = order === "descending" ? -1 : 1;
    const rows = [...body.rows].sort((a, b) => sign * compare(value(a, column), value(b, column)));
    headers.forEach((other) => other.setAttribute("aria-sort", other === header ? order : "none"));
    body.append(...rows);
  };

  const show = () => {
    const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    let count = 0, bytes = 0;
    for (const row of body.rows) {
      const text = row.dataset.text.toLowerCase();
      row.hidden = !words.every((word) => text.includes(word));
      if (!row.hidden) {
        count += 1;
        bytes += Number(row.dataset.bytes);
      }
    }
    document.getElementById("shown").textContent =
      `${count} of ${body.rows.length} layers, ${bytes.toLocaleString("en")} bytes`;
  };

  const keep = (changes) => {
    for (const [key, text] of Object.entries(changes)) text ? state.set(key, text) : state.delete(key);
    history.replaceState(null, "", "#" + state);
  };

  for (const header of headers) {
    header.querySelector("button").addEventListener("click", () => {
      const first = header.dataset.first;
      const other = first === "ascending" ? "descending" : "ascending";
      const order = header.getAttribute("aria-sort") === first ? other : first;
      sort(header, order);
      keep({ sort: header.dataset.key, order });
    });
  }
  filter.addEventListener("input", () => {
    show();
    keep({ filter: filter.value });
  });

  document.querySelector(".controls").hidden = false;
  filter.value = state.get("filter") || "";
  const header = headers.find((one) => one.dataset.key === state.get("sort"));
  if (header) sort(header, state.get("order") === "ascending" ? "ascending" : "descending");
  show();
})();
