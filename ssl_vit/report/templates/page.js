(() => {
  "use strict";
  const tip = document.getElementById("tip");
  const svgNamespace = "http://www.w3.org/2000/svg";

  function show(event, fill) {
    tip.replaceChildren();
    fill(tip);
    tip.hidden = false;
    const box = tip.getBoundingClientRect();
    const left = event.clientX + 16 + box.width > innerWidth ? event.clientX - 16 - box.width : event.clientX + 16;
    const top = Math.min(Math.max(8, event.clientY - box.height / 2), innerHeight - box.height - 8);
    tip.style.left = `${Math.max(8, left)}px`;
    tip.style.top = `${top}px`;
  }
  const hide = () => { tip.hidden = true; };

  function said(text, colour) {
    const line = document.createElement("div");
    if (colour !== undefined) {
      const key = document.createElement("i");
      key.className = `c${colour}`;
      line.append(key);
    }
    line.append(text);
    return line;
  }

  function tile(index) {
    const found = document.createElement("span");
    const [columns, rows] = [32, Number(document.body.dataset.rows)];
    const across = (100 * (index % columns)) / (columns - 1);
    const down = rows > 1 ? (100 * Math.floor(index / columns)) / (rows - 1) : 0;
    found.className = "tile";
    found.style.backgroundPosition = `${across}% ${down}%`;
    return found;
  }

  for (const dot of document.querySelectorAll("circle[data-tile]")) {
    const index = Number(dot.dataset.tile);
    const reveal = (event) => show(event, (into) => into.append(tile(index), said(dot.dataset.said)));
    dot.addEventListener("mousemove", reveal);
    dot.addEventListener("mouseleave", hide);
    const twins = document.querySelectorAll(`circle[data-tile="${index}"]`);
    dot.addEventListener("mouseenter", () => twins.forEach((twin) => { twin.setAttribute("r", "8"); }));
    dot.addEventListener("mouseleave", () => twins.forEach((twin) => twin.setAttribute("r", "4.5")));
  }

  for (const chart of document.querySelectorAll("svg.chart")) {
    const lines = [...chart.querySelectorAll("[data-line]")].map((group) => JSON.parse(group.dataset.line));
    if (!lines.length) continue;
    const cross = document.createElementNS(svgNamespace, "line");
    cross.setAttribute("class", "cross");
    cross.setAttribute("y1", "14");
    cross.setAttribute("y2", String(chart.viewBox.baseVal.height - 34));
    cross.setAttribute("visibility", "hidden");
    chart.append(cross);
    chart.addEventListener("mousemove", (event) => {
      const box = chart.getBoundingClientRect();
      const x = ((event.clientX - box.left) / box.width) * chart.viewBox.baseVal.width;
      const near = lines.map((line) => line.points.reduce((a, b) => (Math.abs(b[0] - x) < Math.abs(a[0] - x) ? b : a)));
      const at = near.reduce((a, b) => (Math.abs(b[0] - x) < Math.abs(a[0] - x) ? b : a))[0];
      cross.setAttribute("x1", at);
      cross.setAttribute("x2", at);
      cross.setAttribute("visibility", "visible");
      show(event, (into) => lines.forEach((line, i) => into.append(said(lines.length > 1 ? `${line.name}, ${near[i][2]}` : near[i][2], line.colour))));
    });
    chart.addEventListener("mouseleave", () => { hide(); cross.setAttribute("visibility", "hidden"); });
  }
})();
