// Predictions of a report: filters, pages, one prediction in full.
// What is shown is a function of location.hash, so every view has a link:
//   #part=0&verdict=wrong&group=category:ocr&change=lost&q=word&page=2&open=17
// Texts of models only ever become text nodes.
"use strict";
(() => {
  const REPORT = JSON.parse(document.getElementById("report").textContent);
  const PAGE = 50;
  const $ = (id) => document.getElementById(id);
  const filters = $("filters");
  const loaded = []; // part -> its rows

  window.mgmRows = (part, rows) => {
    loaded[part] = rows.map((row, index) => ({ ...row, part, index, verdict: verdictOf(row) }));
  };

  function verdictOf(row) {
    if (row.error) return "not asked";
    if (row.score === null) return "not scored";
    return row.score > 0.999 ? "right" : row.score < 0.001 ? "wrong" : "partly right";
  }

  // --- state ---

  function state() {
    return new URLSearchParams(location.hash.includes("=") ? location.hash.slice(1) : "");
  }

  function go(changes, replace = false) {
    const next = state();
    for (const [name, value] of Object.entries(changes)) {
      if (value === null || value === "") next.delete(name);
      else next.set(name, value);
    }
    const url = `#${next}`;
    if (replace) location.replace(url);
    else location.hash = url;
  }

  function load(part) {
    if (loaded[part]) return Promise.resolve();
    return new Promise((done, failed) => {
      const script = document.createElement("script");
      script.src = REPORT.parts[part].file;
      script.onload = done;
      script.onerror = () => failed(new Error(`${script.src} cannot be read`));
      document.head.append(script);
    });
  }

  // --- elements ---

  function el(tag, attributes = {}, ...children) {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (name in made) made[name] = value;
      else made.setAttribute(name, value);
    }
    made.append(...children.filter((child) => child !== null && child !== undefined));
    return made;
  }

  const show = (value) =>
    value === null || value === undefined ? "nothing"
      : typeof value === "string" ? value : JSON.stringify(value);

  function chip(row) {
    const kind = { right: "good", wrong: "bad", "partly right": "partly" }[row.verdict] || "dim";
    const score = row.verdict === "partly right" ? ` ${Math.round(100 * row.score)} %` : "";
    return el("span", { className: `chip ${kind}` }, row.verdict + score);
  }

  function picture(row, number, lazy) {
    const name = row.pictures[number];
    if (name) return el("img", { loading: lazy ? "lazy" : "eager", alt: "", src: name });
    return el("span", { className: "none" }, row.files.length ? "not shown" : "no picture");
  }

  function setOptions(select, groups, chosen) {
    select.replaceChildren(...groups);
    select.value = chosen;
  }

  // --- the list ---

  function matches(row, wanted) {
    const { verdict, group, change, q } = wanted;
    if (verdict && row.verdict !== verdict) return false;
    if (group) {
      const [, name, value] = group.match(/^([^:]*):(.*)$/s) || [];
      if (!(row.groups[name] || []).includes(value)) return false;
    }
    if (change) {
      if (!row.other) return false;
      const [mine, theirs] = [row.score, row.other.score];
      if (change === "gained" && !(mine !== null && theirs !== null && mine > theirs)) return false;
      if (change === "lost" && !(mine !== null && theirs !== null && mine < theirs)) return false;
      if (change === "other answer" && row.text === row.other.text) return false;
    }
    return !q || searched(row).includes(q.toLowerCase());
  }

  function searched(row) {
    row.haystack ??= [row.id, row.prompt, row.text, show(row.answer), row.other?.text ?? ""]
      .join("\n").toLowerCase();
    return row.haystack;
  }

  function line(row) {
    const others = REPORT.other ? [
      row.other
        ? el("div", {}, el("small", {}, REPORT.other), el("p", {}, row.other.text),
          chip({ ...row.other, verdict: verdictOf(row.other) }))
        : el("div", {}, el("small", {}, "not asked there")),
    ] : [];
    return el("button", {
      type: "button", className: REPORT.other ? "one two" : "one",
      onclick: () => go({ open: `${row.part}/${row.index}` }),
    },
    picture(row, 0, true),
    el("div", {}, el("p", {}, row.prompt),
      el("small", {}, `${REPORT.parts[row.part].title}, ${row.id}`)),
    el("div", {}, el("small", {}, REPORT.other ? REPORT.label : "answer"),
      el("p", {}, row.error || row.text), chip(row)),
    ...others,
    el("div", {}, el("small", {}, "expected"), el("p", {}, show(row.answer))));
  }

  function groupOptions(parts) {
    const counts = new Map(); // breakdown -> value -> count
    for (const row of parts.length === 1 ? loaded[parts[0]] : []) {
      for (const [name, values] of Object.entries(row.groups)) {
        if (!counts.has(name)) counts.set(name, new Map());
        for (const v of values) counts.get(name).set(v, (counts.get(name).get(v) || 0) + 1);
      }
    }
    const found = [el("option", { value: "" }, "all")];
    for (const [name, values] of counts) {
      const sorted = [...values].sort(([a], [b]) => a.localeCompare(b));
      found.push(el("optgroup", { label: name }, ...sorted.map(([value, count]) =>
        el("option", { value: `${name}:${value}` }, `${value} (${count})`))));
    }
    return found;
  }

  async function render() {
    const now = state();
    const wanted = Object.fromEntries(
      ["part", "verdict", "group", "change", "q"].map((name) => [name, now.get(name) || ""]));
    const all = REPORT.parts.map((_, i) => i);
    const one = Number(wanted.part || 0);
    const parts = wanted.part === "all" ? all : all.filter((i) => i === one);
    try {
      await Promise.all(parts.map(load));
    } catch (error) {
      $("list").replaceChildren(el("p", { className: "empty bad" }, error.message));
      return;
    }
    setOptions(filters.part, [
      ...REPORT.parts.map((p, i) =>
        el("option", { value: i }, `${p.title === p.name ? p.title : `${p.title} (${p.name})`}`)),
      ...(all.length > 1 ? [el("option", { value: "all" }, "all benchmarks")] : []),
    ], wanted.part || "0");
    setOptions(filters.group, groupOptions(parts), wanted.group);
    filters.verdict.value = wanted.verdict;
    filters.change.value = wanted.change;
    if (document.activeElement !== filters.q) filters.q.value = wanted.q;

    const rows = parts.flatMap((part) => loaded[part]);
    const found = rows.filter((row) => matches(row, wanted));
    const pages = Math.max(1, Math.ceil(found.length / PAGE));
    const page = Math.min(Math.max(1, Number(now.get("page")) || 1), pages);
    $("found").textContent =
      `${found.length.toLocaleString("en")} of ${rows.length.toLocaleString("en")}`;
    $("list").replaceChildren(...(found.length
      ? found.slice((page - 1) * PAGE, page * PAGE).map(line)
      : [el("p", { className: "empty" }, "No prediction matches.")]));
    const [previous, next] = $("pager").querySelectorAll("button");
    $("pager").hidden = pages === 1;
    $("pager").querySelector("span").textContent = `page ${page} of ${pages}`;
    [previous.disabled, next.disabled] = [page === 1, page === pages];
    [previous.onclick, next.onclick] = [-1, 1].map((step) => () => {
      go({ page: page + step });
      $("predictions").scrollIntoView();
    });
    open(now.get("open"), found);
  }

  // --- one prediction ---

  function said(row, name) {
    return el("div", {},
      el("dt", {}, name), el("dd", {}, row.error || row.text || "nothing"),
      el("dt", {}, "read as"), el("dd", {}, show(row.parsed)), chip(row));
  }

  function open(place, found) {
    const dialog = $("one");
    const [part, index] = (place || "").split("/").map(Number);
    const row = place ? loaded[part]?.[index] : undefined;
    if (!row) {
      if (dialog.open) dialog.close();
      return;
    }
    const at = found.indexOf(row);
    const step = (by, label) => {
      const to = at < 0 ? undefined : found[at + by];
      return el("button", {
        type: "button", disabled: !to, title: `${label} of those found`, className: label,
        onclick: () => go({ open: `${to.part}/${to.index}` }, true),
      }, label);
    };
    const facts = [["expected", show(row.answer)]];
    for (const [name, values] of Object.entries(row.groups)) facts.push([name, values.join(", ")]);
    for (const [name, value] of Object.entries(row.more)) facts.push([name, show(value)]);
    facts.push(["tokens", `${show(row.tokens)}, ended by ${show(row.finish)}`]);
    if (row.margin !== null) facts.push(["least margin of two logits", row.margin.toPrecision(3)]);
    const answers = el("div", { className: REPORT.other ? "both" : "" }, said(row, REPORT.label));
    if (row.other) {
      answers.append(said({ ...row.other, verdict: verdictOf(row.other) }, REPORT.other));
    }
    dialog.replaceChildren(
      el("div", { className: "top" },
        el("h3", {}, `${REPORT.parts[row.part].title} `, el("small", {}, row.id)),
        step(-1, "previous"), step(1, "next"),
        el("button", { type: "button", className: "close", onclick: shut }, "close")),
      el("div", { className: "full" },
        el("div", {}, ...(row.files.length ? row.files : [""]).map((file, i) =>
          el("figure", {}, picture(row, i, false), el("figcaption", { className: "dim" }, file)))),
        el("dl", {},
          el("div", {}, el("dt", {}, "question"), el("dd", {}, row.prompt)), answers,
          el("div", { className: "facts" }, ...facts.map(([name, value]) =>
            el("div", { className: value.length > 60 ? "long" : "" },
              el("dt", {}, name), el("dd", {}, value)))))));
    if (!dialog.open) dialog.showModal();
  }

  function shut() {
    go({ open: null }, true);
  }

  // --- published numbers ---

  function published() {
    const model = $("paper")?.value;
    for (const cell of document.querySelectorAll("[data-paper]")) {
      const { value, tolerance, of } = JSON.parse(cell.dataset.paper);
      const theirs = model ? of[model] : undefined;
      if (theirs === undefined) {
        cell.replaceChildren();
        continue;
      }
      const difference = value - theirs;
      const near = tolerance !== null && Math.abs(difference) <= tolerance;
      const kind = near ? "good" : difference > 0 ? "good" : "bad";
      const text = near ? `within ${tolerance}` : difference > 0 ? "above" : "below";
      const sign = difference < 0 ? "" : "+";
      cell.replaceChildren(theirs.toFixed(1),
        el("small", { className: kind }, `${sign}${difference.toFixed(1)}, ${text}`));
    }
    for (const tick of document.querySelectorAll(".tick")) {
      tick.classList.toggle("chosen", tick.dataset.model === model);
    }
  }

  // --- events ---

  for (const name of ["part", "verdict", "group", "change"]) {
    filters[name].onchange = () => go({
      [name]: filters[name].value, page: null, open: null, ...(name === "part" && { group: null }),
    });
  }
  filters.q.oninput = () => go({ q: filters.q.value, page: null, open: null }, true);
  filters.onsubmit = (event) => event.preventDefault();
  filters.onreset = (event) => {
    event.preventDefault();
    filters.q.value = "";
    location.hash = `#part=${filters.part.value}`;
  };
  filters.querySelector(".compare").hidden = !REPORT.other;
  $("one").onclose = shut; // by the escape key
  $("one").onclick = (event) => event.target === $("one") && shut();
  $("one").onkeydown = (event) => {
    const label = { ArrowLeft: "previous", ArrowRight: "next" }[event.key];
    if (label) $("one").querySelector(`.${label}`).click();
  };
  document.addEventListener("click", (event) => {
    const link = event.target.closest("nav a");
    if (link) { // the hash is the state of the predictions: leave it
      event.preventDefault();
      $(link.getAttribute("href").slice(1)).scrollIntoView();
    } else if (event.target.closest("#results a, #categories a")) {
      $("predictions").scrollIntoView();
    }
  });
  if ($("paper")) $("paper").onchange = published;
  window.addEventListener("hashchange", render);
  published();
  render();
})();
