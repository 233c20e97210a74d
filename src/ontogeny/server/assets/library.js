// What the browser keeps: stories, settings and the access key. Nothing of it is sent anywhere by these functions.

const PREFIX = "ontogeny.", STORY = `${PREFIX}story.`;

// A storage of the browser, or one in memory where the browser permits none, as in some private windows.
function openStorage(name) {
  try {
    window[name].getItem(PREFIX);
    return window[name];
  } catch {
    const values = new Map();
    return {
      isTemporary: true,
      getItem: key => values.get(key) ?? null, setItem: (key, value) => values.set(key, value),
      removeItem: key => values.delete(key), key: index => [...values.keys()][index], get length() { return values.size; },
    };
  }
}

const lasting = openStorage("localStorage"), ofTab = openStorage("sessionStorage");
export const isLasting = !lasting.isTemporary;

function read(storage, key) {
  try { return JSON.parse(storage.getItem(PREFIX + key)); } catch { return null; }
}

function write(storage, key, value) {
  try {
    if (value === null) storage.removeItem(PREFIX + key); else storage.setItem(PREFIX + key, JSON.stringify(value));
    return true;
  } catch { return false; } // the storage is full
}

export const newId = () => Array.from(crypto.getRandomValues(new Uint8Array(16)), byte => byte.toString(16).padStart(2, "0")).join("");
export const readSettings = () => read(lasting, "settings") ?? {};
export const writeSettings = settings => write(lasting, "settings", settings);
export const readOfTab = name => read(ofTab, name);
export const writeOfTab = (name, value) => write(ofTab, name, value);

// The key stays in this tab unless the author wants it to be remembered.
export const readKey = () => read(ofTab, "key") ?? read(lasting, "key") ?? "";
export const isKeyRemembered = () => read(lasting, "key") !== null;
export function writeKey(key, isRemembered) {
  write(ofTab, "key", key || null);
  write(lasting, "key", isRemembered && key ? key : null);
}

// The story of this tab. Every change is stored at once. Several tabs may show one story; a tab that changes a story of
// which it does not have the latest revision continues with a copy.
export class Library {
  constructor() {
    const id = readOfTab("story"), stories = this.list();
    this.open(id !== null && this.#read(id) ? id : stories[0]?.id ?? newId());
  }

  list() {
    const ids = Array.from({length: lasting.length}, (_, index) => lasting.key(index))
      .filter(key => key.startsWith(STORY)).map(key => key.slice(STORY.length));
    return ids.map(id => ({id, ...this.#read(id)})).filter(story => typeof story.text === "string")
      .sort((a, b) => b.changedAt - a.changedAt);
  }

  open(id) {
    const story = this.#read(id);
    if (id !== this.id && this.id && !this.text.trim()) write(lasting, `story.${this.id}`, null); // an empty story
    this.id = id; this.revision = story?.revision ?? null; this.text = story?.text ?? "";
    writeOfTab("story", id);
    return this.text;
  }

  // Returns "saved", "copied" if another tab has changed the story too, or "failed" if the storage is full.
  save(text) {
    const stored = this.#read(this.id), isChanged = stored && stored.revision !== this.revision && stored.text !== text;
    const id = isChanged ? newId() : this.id, revision = newId();
    this.text = text;
    if (!write(lasting, `story.${id}`, {text, revision, changedAt: Date.now()})) return "failed";
    this.id = id; this.revision = revision;
    writeOfTab("story", id);
    return isChanged ? "copied" : "saved";
  }

  startNew() { return this.open(newId()); }

  // Deletes the story of this tab and opens the latest other one.
  remove() {
    write(lasting, `story.${this.id}`, null);
    return this.open(this.list()[0]?.id ?? newId());
  }

  // Calls a function with the new text after another tab has changed the story of this tab.
  onForeignChange(callback) {
    window.addEventListener("storage", event => {
      if (event.key !== STORY + this.id || event.newValue === null) return;
      const previous = this.text;
      this.open(this.id);
      if (this.text !== previous) callback(this.text);
    });
  }

  #read(id) { return read(lasting, `story.${id}`); }
}
