/* SPDX-License-Identifier: MIT */
#include "util/util.h"

#include <string.h>

size_t ad_decimal(uint64_t value, char ret[AD_DECIMAL_SIZE])
{
	char *end = ret + AD_DECIMAL_SIZE - 1, *at = end;
	size_t len;

	do
		*--at = (char)('0' + value % 10);
	while ((value /= 10) > 0);
	len = (size_t)(end - at);
	memmove(ret, at, len);
	ret[len] = '\0';
	return len;
}

bool ad_buf_decimal(struct ad_buf *buf, uint64_t value)
{
	char text[AD_DECIMAL_SIZE];

	return ad_buf_append(buf, text, ad_decimal(value, text));
}
