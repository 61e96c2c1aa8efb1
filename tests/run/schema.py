# SPDX-License-Identifier: MIT
"""The part of JSON Schema that docs/*.schema.json use, and nothing else: a
keyword that is not known here is an error, so that no rule goes unchecked."""

TYPES = {
    "object": dict,
    "array": list,
    "string": str,
    "integer": int,
    "boolean": bool,
    "null": type(None),
}
NOTES = {"$schema", "title", "description"}


def is_type(value, name):
    if name == "integer" and isinstance(value, bool):
        return False
    return isinstance(value, TYPES[name])


def errors(value, schema, where="$"):
    """Yield a sentence for everything in value that schema does not allow."""
    for keyword, rule in schema.items():
        if keyword in NOTES or keyword == "properties":
            continue
        if keyword == "type":
            if not is_type(value, rule):
                yield f"{where}: {value!r} is not of type {rule}"
                return
        elif keyword == "const":
            if value != rule or isinstance(value, bool) != isinstance(rule, bool):
                yield f"{where}: {value!r} is not {rule!r}"
        elif keyword == "enum":
            if value not in rule:
                yield f"{where}: {value!r} is not one of {rule}"
        elif keyword == "minimum":
            if value < rule:
                yield f"{where}: {value!r} is less than {rule}"
        elif keyword == "maximum":
            if value > rule:
                yield f"{where}: {value!r} is more than {rule}"
        elif keyword == "minLength":
            if len(value) < rule:
                yield f"{where}: {value!r} is shorter than {rule}"
        elif keyword == "anyOf":
            if all(any(errors(value, branch, where)) for branch in rule):
                yield f"{where}: {value!r} fits no branch"
        elif keyword == "required":
            for name in rule:
                if name not in value:
                    yield f"{where}: lacks {name}"
        elif keyword == "items":
            for i, item in enumerate(value):
                yield from errors(item, rule, f"{where}[{i}]")
        elif keyword == "additionalProperties":
            for name in value:
                if name in schema.get("properties", {}):
                    continue
                if rule is False:
                    yield f"{where}: {name} is unknown"
                else:
                    yield from errors(value[name], rule, f"{where}.{name}")
        else:
            raise ValueError(f"keyword {keyword} is not known to this validator")
    for name, rule in schema.get("properties", {}).items():
        if isinstance(value, dict) and name in value:
            yield from errors(value[name], rule, f"{where}.{name}")
