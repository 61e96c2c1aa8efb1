/* SPDX-License-Identifier: MIT */
#include "util/util.h"

static void start(struct ad_utf8 *state, uint8_t byte)
{
	if (byte < 0x80) {
		return;
	} else if ((byte & 0xe0) == 0xc0) {
		state->code = byte & 0x1f;
		state->least = 0x80;
		state->need = 1;
	} else if ((byte & 0xf0) == 0xe0) {
		state->code = byte & 0x0f;
		state->least = 0x800;
		state->need = 2;
	} else if ((byte & 0xf8) == 0xf0) {
		state->code = byte & 0x07;
		state->least = 0x10000;
		state->need = 3;
	} else {
		state->bad = true;
	}
}

static void go_on(struct ad_utf8 *state, uint8_t byte)
{
	if ((byte & 0xc0) != 0x80) {
		state->bad = true;
		return;
	}
	state->code = state->code << 6 | (byte & 0x3f);
	if (--state->need > 0)
		return;
	state->bad = state->code < state->least || state->code > 0x10ffff ||
		     (state->code >= 0xd800 && state->code <= 0xdfff);
}

bool ad_utf8_feed(struct ad_utf8 *state, const uint8_t *data, size_t len)
{
	for (size_t i = 0; i < len && !state->bad; i++) {
		if (state->need)
			go_on(state, data[i]);
		else
			start(state, data[i]);
	}
	return !state->bad;
}

bool ad_utf8_valid(const void *data, size_t len)
{
	struct ad_utf8 state = { 0 };

	return ad_utf8_feed(&state, data, len) && ad_utf8_done(&state);
}
