// Elements of the page.

export const element = id => document.getElementById(id);

// Creates an element with a class, a text and children.
export function create(tag, {css = "", text, children = []} = {}) {
  const created = document.createElement(tag);
  if (css) created.className = css;
  if (text !== undefined) created.textContent = text;
  created.append(...children);
  return created;
}
