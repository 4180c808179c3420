// What every policy in JavaScript has in common: it says what it is, and reads its settings. They
// are held against settings.schema.json, so that schema and policy never disagree.

import { name, version, schema } from '../build/about.js';

// `configure(settings, upstreams, wrong)` takes settings that the schema allows. What the schema
// cannot say (which upstreams there are) it reports itself: `wrong(path, message)`. It may return
// what the policy needs: `{ attributes: ['helo', 'header:subject'], outcomes: true }`.
export function policy(configure, metrics = []) {
  return {
    describe() {
      return { name, version, settingsSchema: JSON.stringify(schema), metrics };
    },

    configure(text, upstreams) {
      const problems = [];
      const wrong = (path, message) => problems.push({ path, message });
      let settings = null;
      try {
        settings = JSON.parse(text || '{}');
      } catch (error) {
        wrong('', `not JSON: ${error.message}`);
      }
      if (problems.length === 0) check(settings, schema, '', wrong);
      const needs = problems.length === 0 ? configure(settings, upstreams, wrong) : undefined;
      if (problems.length > 0) throw problems.slice(0, 100);
      return { attributes: [], upstreams: [], outcomes: false, ...needs };
    },
  };
}

const KNOWN = [
  '$schema', 'title', 'description', 'default', 'type', 'enum', 'properties', 'required',
  'additionalProperties', 'items', 'minItems', 'maxItems', 'minLength', 'maxLength', 'pattern',
  'minimum', 'maximum',
];

// The part of JSON Schema that settings need; a keyword beyond it is an error and never ignored.
function check(value, schema, path, wrong) {
  for (const keyword of Object.keys(schema)) {
    if (!KNOWN.includes(keyword)) wrong(path, `the schema says ${keyword}, which is not known`);
  }
  const type = typeOf(value);
  if (schema.type && schema.type !== type && !(schema.type === 'number' && type === 'integer')) {
    return wrong(path, `must be of type ${schema.type}, not ${type}`);
  }
  if (schema.enum && !schema.enum.includes(value)) {
    wrong(path, `is none of: ${schema.enum.join(', ')}`);
  }
  if (type === 'object') checkObject(value, schema, path, wrong);
  if (type === 'array') {
    between(value.length, schema.minItems, schema.maxItems, 'items', path, wrong);
    value.forEach((item, index) => check(item, schema.items ?? {}, `${path}[${index}]`, wrong));
  }
  if (type === 'string') {
    between([...value].length, schema.minLength, schema.maxLength, 'characters', path, wrong);
    if (schema.pattern && !new RegExp(schema.pattern, 'u').test(value)) {
      wrong(path, `does not match ${schema.pattern}`);
    }
  }
  if (typeof value === 'number') between(value, schema.minimum, schema.maximum, '', path, wrong);
}

function checkObject(value, schema, path, wrong) {
  const inside = (key) => (path ? `${path}.${key}` : key);
  for (const key of schema.required ?? []) {
    if (!Object.hasOwn(value, key)) wrong(inside(key), 'is missing');
  }
  const known = schema.properties ?? {};
  for (const [key, item] of Object.entries(value)) {
    if (Object.hasOwn(known, key)) check(item, known[key], inside(key), wrong);
    else if (schema.additionalProperties === false) {
      wrong(inside(key), `unknown; known here: ${Object.keys(known).join(', ')}`);
    }
  }
}

function between(number, least, most, what, path, wrong) {
  if (number < least) wrong(path, `must be at least ${least} ${what}`.trim());
  if (number > most) wrong(path, `must be at most ${most} ${what}`.trim());
}

function typeOf(value) {
  if (value === null) return 'null';
  if (Array.isArray(value)) return 'array';
  return Number.isInteger(value) ? 'integer' : typeof value;
}

// What stands behind the last `@` of an address.
export function domainOf(address) {
  return address.includes('@') ? address.slice(address.lastIndexOf('@') + 1) : '';
}

// A test of texts: `*` stands for any text, all else for itself, in upper or lower case.
export function pattern(text) {
  const parts = text.split('*').map((part) => part.replace(/[.+?^${}()|[\]\\]/g, '\\$&'));
  const regex = new RegExp(`^${parts.join('.*')}$`, 'is');
  return (tested) => regex.test(tested);
}
