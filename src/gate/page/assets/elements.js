// Makes elements of text and other elements. Text never becomes markup: there are only text nodes.

/** An element with attributes, listeners (`on`) and children; `null`, `undefined` and `false` are left out. */
export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "on") {
      for (const [event, listener] of Object.entries(value)) made.addEventListener(event, listener);
    } else if (value === true) {
      made.setAttribute(name, "");
    } else if (value !== null && value !== undefined && value !== false) {
      made.setAttribute(name, String(value));
    }
  }
  appendChildren(made, children);
  return made;
}

/** Puts children behind those that are there. */
export function appendChildren(parent, children) {
  for (const child of children.flat(Infinity)) {
    if (child === null || child === undefined || child === false) continue;
    parent.append(child instanceof Node ? child : document.createTextNode(String(child)));
  }
}

/** Puts these children in the place of those that are there. What had the focus keeps it, where it is there again. */
export function replaceChildren(parent, ...children) {
  const focused = parent.contains(document.activeElement) ? document.activeElement : null;
  parent.textContent = "";
  appendChildren(parent, children);
  if (!focused || focused === document.activeElement) return;
  const isSame = (other) => other.getAttribute("href") === focused.getAttribute("href") && other.textContent === focused.textContent;
  [...parent.querySelectorAll("a, button")].find(isSame)?.focus();
}

let lastId = 0;

/** An id that no other element of the page has. */
export function uniqueId(what) {
  lastId += 1;
  return `${what}-${lastId}`;
}

/** A control with its label and perhaps a line of help, as one block. */
export function labeledField(label, control, help) {
  control.id ||= uniqueId("field");
  const helpText = help ? element("p", { class: "reason", id: uniqueId("help") }, help) : null;
  if (helpText) control.setAttribute("aria-describedby", helpText.id);
  return element("div", { class: "field" }, element("label", { for: control.id }, label), control, helpText);
}

/** A checkbox in front of its label. */
export function checkField(label, control, help) {
  control.id ||= uniqueId("field");
  const helpText = help ? element("p", { class: "reason", id: uniqueId("help") }, help) : null;
  if (helpText) control.setAttribute("aria-describedby", helpText.id);
  return element("div", { class: "field" }, control, " ", element("label", { for: control.id, class: "inline" }, label), helpText);
}

/**
 * A button with the reason why it cannot be used, if there is one. Such a button can still be reached by keyboard, so that
 * screen readers read the reason; pressing it does nothing.
 */
export class ReasonedButton {
  constructor(label, kind, press) {
    this.reason = element("p", { class: "reason", id: uniqueId("reason"), hidden: true });
    this.button = element("button", { type: "button", class: kind, on: { click: () => this.press(press) } }, label);
    this.block = element("div", { class: "action" }, this.button, this.reason);
  }

  press(action) {
    if (this.button.getAttribute("aria-disabled") !== "true") action();
  }

  /** Disables the button for this reason; enables it when there is none. */
  disableFor(reason) {
    if (reason) {
      this.button.setAttribute("aria-disabled", "true");
      this.button.setAttribute("aria-describedby", this.reason.id);
    } else {
      this.button.removeAttribute("aria-disabled");
      this.button.removeAttribute("aria-describedby");
    }
    this.reason.hidden = !reason;
    this.reason.textContent = reason ?? "";
  }
}

/**
 * A table that is read as one on narrow screens too, where it is shown as a list: the style sheet takes the roles of its parts
 * away there, so that they are given by name. Each row is a list of cells, in the order of the headings.
 */
export function dataTable(caption, headings, rows) {
  const cell = (content, index) => element("td", { role: "cell", "data-label": headings[index] }, element("span", {}, content));
  const row = (cells) => element("tr", { role: "row" }, cells.map(cell));
  const heading = (text) => element("th", { role: "columnheader", scope: "col" }, text);
  return element(
    "table",
    { role: "table" },
    element("caption", { class: "hidden-text" }, caption),
    element("thead", { role: "rowgroup" }, element("tr", { role: "row" }, headings.map(heading))),
    element("tbody", { role: "rowgroup" }, rows.map(row)),
  );
}

/** A list of names and what they stand for; entries without a value are left out. */
export function descriptionList(entries) {
  const shown = entries.filter(([, value]) => value !== null && value !== undefined && value !== "");
  return element("dl", {}, shown.map(([name, value]) => [element("dt", {}, name), element("dd", {}, value)]));
}

/** Buttons that lead to the pages of a list before and behind this one. */
export function pageButtons(pages, show) {
  if (!pages.hasPrevious && !pages.hasNext) return null;
  const button = (label, isThere, step) => {
    const made = new ReasonedButton(label, "", () => show(step));
    made.disableFor(isThere ? null : step < 0 ? "This is the first page." : "This is the last page.");
    return made.block;
  };
  return element(
    "nav",
    { class: "pager", "aria-label": "Pages" },
    button("Previous page", pages.hasPrevious, -1),
    element("span", {}, `Page ${pages.number}`),
    button("Next page", pages.hasNext, 1),
  );
}
