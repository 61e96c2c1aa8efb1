/* SPDX-License-Identifier: MIT */
#include "util/util.h"

#include <string.h>

size_t ad_strv_len(const char *const *strv)
{
	size_t len = 0;

	while (strv && strv[len])
		len++;
	return len;
}

char **ad_strv_dup(const char *const *strv)
{
	size_t count = ad_strv_len(strv), total;
	char **copy, *text;

	if (__builtin_mul_overflow(count + 1, sizeof(*copy), &total))
		return NULL;
	for (size_t i = 0; i < count; i++) {
		if (__builtin_add_overflow(total, strlen(strv[i]) + 1, &total))
			return NULL;
	}
	copy = malloc(total);
	if (!copy)
		return NULL;
	text = (char *)(copy + count + 1);
	for (size_t i = 0; i < count; i++) {
		size_t size = strlen(strv[i]) + 1;

		copy[i] = memcpy(text, strv[i], size);
		text += size;
	}
	copy[count] = NULL;
	return copy;
}

void ad_strlist_free(struct ad_strlist *list)
{
	for (size_t i = 0; i < list->count; i++)
		agentd_free(list->items[i]);
	agentd_free(list->items);
	*list = (struct ad_strlist){ 0 };
}

int ad_strlist_add(struct ad_strlist *list, const char *text)
{
	ad_autofree char *copy = strdup(text);

	if (!copy)
		return AGENTD_ERR_NOMEM;
	if (list->count == list->cap) {
		size_t cap = list->cap ? list->cap * 2 : 8;
		char **items = reallocarray(list->items, cap, sizeof(*items));

		if (!items)
			return AGENTD_ERR_NOMEM;
		list->items = items;
		list->cap = cap;
	}
	list->items[list->count++] = AD_STEAL(copy);
	return 0;
}

bool ad_strlist_has(const struct ad_strlist *list, const char *text)
{
	for (size_t i = 0; i < list->count; i++) {
		if (strcmp(list->items[i], text) == 0)
			return true;
	}
	return false;
}
