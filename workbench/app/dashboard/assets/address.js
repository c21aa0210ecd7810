// The numbers and the slider write the address; the address decides what is shown (view.py).
// Here and not on the server, so that quick keys cannot overtake each other on the way, and no late
// answer undoes them.
"use strict";
(() => {
  const whole = (text) => {
    const digits = String(text ?? "").replace(/[\s,_]/g, "");
    return /^\d{1,15}$/.test(digits) ? Number(digits) : null;
  };
  const blank = (text) => String(text ?? "").trim() === "";

  // The controls' values as last acted on (at first those of controls.py). One that differs from
  // them was moved by the reader.
  const NAMES = ["layer", "expert", "start", "stop", "span"];
  let seen = [0, 0, "", "", [0, 1]];
  // What the last answer asked of them; null before the first.
  let asked = null;
  let dragging = false;
  const same = (a, b) => JSON.stringify(a) === JSON.stringify(b);

  document.addEventListener("pointerdown", (event) => {
    dragging = event.target instanceof Element && event.target.closest(".slider") !== null;
  }, true);
  for (const end of ["pointerup", "pointercancel"])
    document.addEventListener(end, () => { dragging = false; }, true);

  // Whether something stands in a field that was not entered yet, or the slider is held.
  function isHeld(name, value) {
    if (name === "span") return dragging;
    const field = document.getElementById(name);
    return field === document.activeElement && field.value !== String(value ?? "");
  }

  function steps(params, moved, start, stop, span, before, last) {
    let from = whole(params.get("start")) ?? 0;
    let to = whole(params.get("stop"));
    // The end that was not moved may be that of a run which has grown since.
    if (moved.has("span") && span[0] !== before[0]) from = span[0];
    if (moved.has("span") && span[1] !== before[1]) to = span[1];
    if (moved.has("start")) from = blank(start) ? 0 : whole(start) ?? from;
    if (moved.has("stop")) to = blank(stop) ? null : whole(stop) ?? to;
    if (to !== null && asked !== null && to >= last) to = null;
    // Of two that exclude each other the one that moved counts.
    if (to !== null && to <= from) moved.has("stop") ? (from = 0) : (to = null);
    return [from, to];
  }

  // Puts into the controls what an answer says of them, unless it answers an address that was left,
  // or one of them is held or was moved meanwhile: `write` is about to hear of that.
  function settle(told, search, ...now) {
    const none = window.dash_clientside.no_update;
    const bare = (text) => (text ?? "").replace(/^\?/, "");
    if (!told || bare(told.search) !== bare(search)) return NAMES.map(() => none);
    const before = seen;
    seen = [...before];
    asked = told.values;
    return asked.map((value, i) => {
      if (!same(now[i], before[i]) || isHeld(NAMES[i], now[i])) return none;
      seen[i] = value;
      return same(now[i], value) ? none : value;
    });
  }

  function write(layer, expert, start, stop, span, last, search) {
    const values = [layer, expert, start, stop, span];
    const [before, moved] = [seen, new Set(NAMES.filter((_, i) => !same(values[i], seen[i])))];
    seen = values;
    const params = new URLSearchParams(search ?? "");
    const was = params.toString();
    const set = (name, value) => (value ? params.set(name, String(value)) : params.delete(name));
    if (moved.has("layer") && whole(layer) !== null) set("layer", whole(layer));
    if (moved.has("expert") && whole(expert) !== null) set("expert", whole(expert));
    if (moved.has("span") || moved.has("start") || moved.has("stop")) {
      const [from, to] = steps(params, moved, start, stop, span, before[4], last);
      set("start", from);
      set("stop", to);
    }
    if (params.toString() !== was) {
      window.dash_clientside.set_props("url", { search: `?${params}` });
    } else if (asked !== null) {
      // A move that leaves the view as it is, such as a word for a step, is taken back.
      for (const name of moved) {
        seen[NAMES.indexOf(name)] = asked[NAMES.indexOf(name)];
        window.dash_clientside.set_props(name, { value: asked[NAMES.indexOf(name)] });
      }
    }
  }

  // A number that Dash refuses (below 0, beyond the last, broken) never reaches `write`.
  document.addEventListener("change", (event) => {
    const i = ["layer", "expert"].indexOf(event.target.id);
    if (i < 0 || asked === null || (event.target.validity.valid && event.target.value)) return;
    const value = Object.getOwnPropertyDescriptor(HTMLInputElement.prototype, "value");
    value.set.call(event.target, String(asked[i]));
    event.target.dispatchEvent(new Event("input", { bubbles: true }));
  }, true);

  window.dash_clientside = Object.assign({}, window.dash_clientside, { workbench: { settle, write } });
})();
