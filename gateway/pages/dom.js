// Two helpers for building pages without a framework. Text is always text, never markup.

export function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  Object.assign(made, properties);
  made.append(...children.map((child) => (child instanceof Node ? child : String(child))));
  return made;
}

export function fill(parent, children) {
  parent.replaceChildren(...children);
}

const SVG = "http://www.w3.org/2000/svg";

export function svg(tag, attributes = {}, ...children) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}
