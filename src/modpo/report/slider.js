// The weight slider. It runs after chart.js, whose `chart`, `rings` and `drawn` it uses.
//
// All that it shows is set as text. It keeps the chosen point in the page's address, as `#point=2`, and obeys such an
// address, so that a point can be linked to.
{
  const {policies, start} = JSON.parse(document.getElementById("slider-data").textContent);
  const section = document.getElementById("slider");
  const control = document.getElementById("weights");
  const every = document.getElementById("every-policy");
  const row = section.querySelector("tbody tr");
  const dots = [...control.querySelectorAll("circle")];
  const cards = [...document.querySelectorAll("[data-policy]")];
  const last = policies.length - 1;
  const known = (policy) => policy > 0 && policy in policies;
  const asked = () => Number(new URLSearchParams(location.hash.slice(1)).get("point"));
  let chosen = known(asked()) ? asked() : start;

  function choose(policy) {
    if (policy === chosen || !known(policy)) return;
    chosen = policy;
    show();
  }

  function remember() {
    history.replaceState(null, "", location.href.split("#")[0] + "#point=" + chosen);
  }

  // --- what is shown

  function show() {
    showRow();
    showAnswers();
    showControl();
    const seen = policies.map((_, i) => Number(i === chosen));
    drawn.then(() => Plotly.restyle(chart, {"marker.opacity": [seen]}, rings));
  }

  function made(tag, text, className = "") {
    const element = document.createElement(tag);
    element.textContent = text;
    element.className = className;
    return element;
  }

  function showRow() {
    const {title, flag, colour, facts} = policies[chosen];
    const swatch = made("span", "", "swatch");
    swatch.style.background = colour;
    const [head, ...cells] = row.children;
    head.replaceChildren(swatch, title, ...(flag ? [" ", made("span", flag, "flag")] : []));
    cells.forEach((cell, i) => cell.replaceChildren(facts[i][0], made("small", facts[i][1])));
  }

  function showAnswers() {
    for (const card of cards) {
      const policy = Number(card.dataset.policy);
      card.hidden = !every.checked && policy !== 0 && policy !== chosen;
      card.classList.toggle("chosen", policy === chosen);
    }
    // beside the reference's, which stays where it is
    for (const card of cards.filter((card) => card.classList.contains("chosen"))) {
      const list = card.parentElement;
      const gap = parseFloat(getComputedStyle(list).columnGap);
      list.scrollLeft = card.offsetLeft - list.offsetLeft - list.firstElementChild.offsetWidth - gap;
    }
  }

  function showControl() {
    const {title, flag} = policies[chosen];
    if (dots.length) {
      dots.forEach((dot, i) => dot.classList.toggle("chosen", i + 1 === chosen));
      control.setAttribute("aria-valuenow", chosen);
    } else {
      control.value = mirrored(chosen);
    }
    if (control.tagName !== "SELECT") control.setAttribute("aria-valuetext", flag ? title + ", " + flag : title);
  }

  // --- a range input or a select box

  // the right end of a range input is the first policy
  function mirrored(value) {
    return control.type === "range" ? last + 1 - value : value;
  }

  // --- a triangle

  // 0 if no point will do
  function least(cost) {
    const costs = dots.map((dot) => cost(dot.cx.baseVal.value, dot.cy.baseVal.value));
    const lowest = Math.min(...costs);
    return lowest < Infinity ? costs.indexOf(lowest) + 1 : 0;
  }

  function under(pointer) {
    const at = new DOMPoint(pointer.clientX, pointer.clientY).matrixTransform(control.getScreenCTM().inverse());
    return least((x, y) => Math.hypot(x - at.x, y - at.y));
  }

  // the point that is met first by a circle through the chosen one, growing in that direction
  function towards(right, down) {
    const from = dots[chosen - 1];
    return least((x, y) => {
      const dx = x - from.cx.baseVal.value, dy = y - from.cy.baseVal.value;
      const ahead = dx * right + dy * down;
      return ahead > 0.01 ? (dx * dx + dy * dy) / ahead : Infinity;
    });
  }

  const keys = {
    ArrowLeft: () => towards(-1, 0), ArrowRight: () => towards(1, 0),
    ArrowUp: () => towards(0, -1), ArrowDown: () => towards(0, 1),
    PageDown: () => chosen - 1, PageUp: () => chosen + 1, Home: () => 1, End: () => last,
  };

  if (dots.length) {
    control.addEventListener("pointerdown", (event) => {
      control.setPointerCapture(event.pointerId);
      choose(under(event));
    });
    control.addEventListener("pointermove", (event) => {
      if (event.buttons & 1) choose(under(event));
    });
    control.addEventListener("pointerup", remember);
    control.addEventListener("keydown", (event) => {
      if (!(event.key in keys) || event.altKey || event.ctrlKey || event.metaKey) return;
      event.preventDefault();
      choose(keys[event.key]());
      remember();
    });
  } else {
    control.addEventListener("input", () => choose(mirrored(Number(control.value))));
    control.addEventListener("change", remember);
  }
  every?.addEventListener("change", showAnswers);
  window.addEventListener("hashchange", () => choose(asked()));

  section.hidden = false;
  section.append(document.getElementById("answers"));
  show();
}
