const globals = ["document", "window", "location", "history", "localStorage", "URL", "URLSearchParams", "Blob", "Response",
  "DecompressionStream", "CSSStyleSheet", "CSS", "DOMPoint", "setTimeout"];
export default [{
  languageOptions: { globals: Object.fromEntries(globals.map(name => [name, "readonly"])) },
  rules: {
    "no-undef": "error", "no-unused-vars": "error", "no-shadow": "error", "prefer-const": "error", "no-redeclare": "error",
    "no-dupe-keys": "error", "no-var": "error", "eqeqeq": ["error", "always", { "null": "ignore" }],
    "max-len": ["error", 110], "max-lines": ["error", 800],
  },
}];
