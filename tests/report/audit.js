// SPDX-License-Identifier: GPL-2.0-or-later
// What is wrong with a page: contrast below WCAG AA, texts of a picture on top of each other or cut
// off at its edge, things without a name, links that lead nowhere, content wider than the window.
(() => {
  const wrong = [];
  const parse = (text) => {
    const found = text.match(/[\d.]+/g);
    return found ? found.map(Number) : [0, 0, 0, 0];
  };
  const light = ([r, g, b]) => {
    const f = (v) => ((v /= 255), v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * f(r) + 0.7152 * f(g) + 0.0722 * f(b);
  };
  const ratio = (a, b) => {
    const [x, y] = [light(a), light(b)].sort((p, q) => q - p);
    return (x + 0.05) / (y + 0.05);
  };
  const behind = (element) => {
    for (let e = element; e; e = e.parentElement) {
      const c = parse(getComputedStyle(e).backgroundColor);
      if (c.length === 3 || c[3] > 0.99) return c;
    }
    return [255, 255, 255];
  };
  const visible = (e) => e.checkVisibility() && e.getBoundingClientRect().width > 0;

  const seen = new Set();
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode, element = node.parentElement;
    if (!node.data.trim() || seen.has(element) || element.closest("script,style,title,desc,.skip,.md-skip"))
      continue;
    seen.add(element);
    if (!visible(element)) continue;
    const style = getComputedStyle(element);
    const svg = element.closest("svg");
    let ink, ground;
    if (svg) {
      ink = parse(style.fill);
      ground = behind(svg);
      const box = element.getBoundingClientRect();
      const x = box.left + box.width / 2, y = box.top + box.height / 2;
      for (const rect of svg.querySelectorAll("rect")) {
        if (rect.compareDocumentPosition(element) & Node.DOCUMENT_POSITION_PRECEDING) continue;
        const r = rect.getBoundingClientRect();
        const fill = getComputedStyle(rect);
        if (r.left <= x && x <= r.right && r.top <= y && y <= r.bottom && fill.fill !== "none") {
          const over = parse(fill.fill), part = parseFloat(fill.fillOpacity);
          ground = over.slice(0, 3).map((v, i) => v * part + ground[i] * (1 - part));
        }
      }
    } else {
      ink = parse(style.color);
      ground = behind(element);
    }
    const size = parseFloat(style.fontSize);
    const least = size >= 24 || (size >= 18.66 && style.fontWeight >= 700) ? 3 : 4.5;
    const found = ratio(ink, ground);
    if (found < least)
      wrong.push(`contrast ${found.toFixed(2)}: ${node.data.trim().slice(0, 40)}`);
  }

  for (const svg of document.querySelectorAll("svg")) {
    if (!visible(svg)) continue;
    const boxes = [...svg.querySelectorAll("text")].map((t) => [t, t.getBoundingClientRect()]);
    const edge = svg.getBoundingClientRect();
    for (const [t, a] of boxes)
      if (a.left < edge.left - 2 || a.right > edge.right + 2 || a.bottom > edge.bottom + 2)
        wrong.push(`cut off in ${svg.id}: "${t.textContent}"`);
    for (let i = 0; i < boxes.length; i++)
      for (let j = i + 1; j < boxes.length; j++) {
        const [t, a] = boxes[i], [u, b] = boxes[j];
        const w = Math.min(a.right, b.right) - Math.max(a.left, b.left);
        const h = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
        if (w > 1.5 && h > 3)
          wrong.push(`overlap in ${svg.id}: "${t.textContent}" and "${u.textContent}"`);
      }
    if (svg.getAttribute("role") === "img") {
      const by = (svg.getAttribute("aria-labelledby") || "").split(" ")[0];
      const name = svg.getAttribute("aria-label") || document.getElementById(by)?.textContent;
      if (!name) wrong.push(`picture without a name: ${svg.id}`);
    } else if (svg.getAttribute("aria-hidden") !== "true" && !svg.closest("[aria-hidden=true],.md-icon,button,a,label"))
      wrong.push(`picture without a role: ${svg.id}`);
  }
  for (const b of document.querySelectorAll("button,a[href]"))
    if (visible(b) && !(b.getAttribute("aria-label") || b.title || b.textContent.trim()))
      wrong.push(`control without a name: ${b.outerHTML.slice(0, 60)}`);
  for (const r of document.querySelectorAll("[role=region]"))
    if (!r.getAttribute("aria-label")) wrong.push("region without a name");
  const ids = [...document.querySelectorAll("[id]")].map((e) => e.id);
  for (const id of new Set(ids))
    if (ids.filter((one) => one === id).length > 1) wrong.push(`id twice: ${id}`);
  for (const a of document.querySelectorAll('a[href^="#"]')) {
    const id = decodeURIComponent(a.getAttribute("href").slice(1));
    if (id && !document.getElementById(id)) wrong.push(`link to nothing: #${id}`);
  }
  if (document.documentElement.scrollWidth > innerWidth + 1)
    wrong.push(`wider than the window: ${document.documentElement.scrollWidth} > ${innerWidth}`);
  if (!document.documentElement.lang) wrong.push("no language");
  if (!document.title) wrong.push("no title");
  return wrong;
})()
