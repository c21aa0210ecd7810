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

  function steps(params, moved, start, stop, span, last) {
    let from = whole(params.get("start")) ?? 0;
    let to = whole(params.get("stop"));
    if (moved.has("span")) [from, to] = span;
    if (moved.has("start")) from = blank(start) ? 0 : whole(start) ?? from;
    if (moved.has("stop")) to = blank(stop) ? null : whole(stop) ?? to;
    if (to !== null && to >= last) to = null;
    // Of two that exclude each other the one that moved counts.
    if (to !== null && to <= from) moved.has("stop") ? (from = 0) : (to = null);
    return [from, to];
  }

  // The controls' values as last acted on. One that differs from them was moved by the reader.
  const NAMES = ["layer", "expert", "start", "stop", "span"];
  let seen = null;
  const same = (a, b) => JSON.stringify(a) === JSON.stringify(b);

  // Puts into the controls what an answer says of them, unless it answers an address that was left,
  // or one of them was moved meanwhile: `write` is about to hear of that.
  function settle(told, search, ...now) {
    const none = window.dash_clientside.no_update;
    const bare = (text) => (text ?? "").replace(/^\?/, "");
    if (!told || bare(told.search) !== bare(search)) return NAMES.map(() => none);
    const before = seen ?? now;
    seen = [...before];
    return told.values.map((value, i) => {
      if (!same(now[i], before[i])) return none;
      seen[i] = value;
      return same(now[i], value) ? none : value;
    });
  }

  function write(layer, expert, start, stop, span, last, search) {
    const values = [layer, expert, start, stop, span];
    if (seen === null) return;
    const moved = new Set(NAMES.filter((_, i) => !same(values[i], seen[i])));
    seen = values;
    const params = new URLSearchParams(search ?? "");
    const before = params.toString();
    const set = (name, value) => (value ? params.set(name, String(value)) : params.delete(name));
    if (moved.has("layer") && whole(layer) !== null) set("layer", whole(layer));
    if (moved.has("expert") && whole(expert) !== null) set("expert", whole(expert));
    if (moved.has("span") || moved.has("start") || moved.has("stop")) {
      const [from, to] = steps(params, moved, start, stop, span, last);
      set("start", from);
      set("stop", to);
      // What was typed and is no number, or leaves all as it was, is put right.
      const say = (name, value) => {
        seen[NAMES.indexOf(name)] = value;
        window.dash_clientside.set_props(name, { value });
      };
      if (moved.has("start") && start !== String(from)) say("start", String(from));
      const end = to === null ? "" : String(to);
      if (moved.has("stop") && stop !== end) say("stop", end);
    }
    const after = params.toString();
    if (after !== before) window.dash_clientside.set_props("url", { search: `?${after}` });
  }

  window.dash_clientside = Object.assign({}, window.dash_clientside, { workbench: { settle, write } });
})();
