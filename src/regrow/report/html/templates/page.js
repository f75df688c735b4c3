"use strict";
(() => {
  const tip = document.querySelector(".tip");
  const show = (mark, x, y) => {
    tip.textContent = mark.dataset.tip;
    tip.hidden = false;
    const box = tip.getBoundingClientRect();
    tip.style.left = Math.max(6, Math.min(x + 12, innerWidth - box.width - 6)) + "px";
    tip.style.top = (y - box.height - 12 < 6 ? y + 16 : y - box.height - 12) + "px";
    document.querySelectorAll(".p.on").forEach((other) => other.classList.remove("on"));
    mark.classList.add("on");
  };
  const hide = () => {
    tip.hidden = true;
    document.querySelectorAll(".p.on").forEach((mark) => mark.classList.remove("on"));
  };
  const showAt = (mark) => {
    const box = (mark.querySelector(".m") || mark).getBoundingClientRect();
    show(mark, box.x + box.width / 2, box.y);
  };
  // Values on hover and touch; with the arrow keys once a chart has the focus.
  document.querySelectorAll("figure svg").forEach((chart) => {
    const marks = [...chart.querySelectorAll(".p")];
    marks.forEach((mark) => {
      const title = mark.querySelector("title");
      mark.dataset.tip = title.textContent;
      if (mark.getAttribute("href")) mark.setAttribute("aria-label", title.textContent);
      title.remove();
      mark.addEventListener("pointerenter", (event) => show(mark, event.clientX, event.clientY));
      mark.addEventListener("pointerleave", hide);
    });
    if (!marks.length) return;
    let at = -1;
    chart.setAttribute("tabindex", "0");
    chart.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
      if (event.key === "Escape") hide();
      if (event.key === "Enter" && at >= 0 && marks[at].getAttribute("href"))
        location.hash = marks[at].getAttribute("href");
      if (!step) return;
      event.preventDefault();
      at = (at + step + marks.length) % marks.length;
      showAt(marks[at]);
    });
    chart.addEventListener("blur", () => { at = -1; hide(); });
  });
  // Tables sort by a click on a head: numbers largest first, then the other way round.
  const value = (row, place) => {
    const cell = row.cells[place];
    const text = cell.dataset.v === undefined ? cell.textContent.trim() : cell.dataset.v;
    return text !== "" && isFinite(text) ? Number(text) : text;
  };
  const compare = (a, b, sign) => {
    if (a === b) return 0;
    if (a === "" || b === "") return a === "" ? 1 : -1;
    const numbers = typeof a === "number" && typeof b === "number";
    return sign * (numbers ? a - b : String(a).localeCompare(String(b), "en", { numeric: true }));
  };
  document.querySelectorAll("table").forEach((table) => {
    const body = table.tBodies[0];
    if (body.rows.length < 2) return;
    [...table.tHead.rows[0].cells].forEach((head, place) => {
      if (!head.textContent.trim()) return;
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = head.textContent;
      head.replaceChildren(button);
      button.addEventListener("click", () => {
        const before = head.getAttribute("aria-sort");
        const first = head.classList.contains("n") ? "descending" : "ascending";
        const other = first === "ascending" ? "descending" : "ascending";
        const now = before === first ? other : first;
        [...head.parentNode.cells].forEach((cell) => cell.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", now);
        const rows = [...body.rows].map((row) => [value(row, place), row]);
        rows.forEach((pair) => pair[1].classList.remove("g"));
        rows.sort((a, b) => compare(a[0], b[0], now === "ascending" ? 1 : -1));
        body.append(...rows.map((pair) => pair[1]));
      });
    });
  });
  // While a run goes on, read the page again; anybody can stop that.
  const seconds = Number(document.body.dataset.seconds || 0);
  if (seconds) {
    const label = document.createElement("label");
    const box = document.createElement("input");
    box.type = "checkbox";
    box.checked = true;
    label.append(box, " read it again every " + seconds + " s");
    document.querySelector(".again").append(label);
    setInterval(() => { if (box.checked && !document.hidden) location.reload(); }, seconds * 1000);
  }
})();
