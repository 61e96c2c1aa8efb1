/* SPDX-License-Identifier: MIT */
#include <string.h>

#include "core/core.h"

void ad_record_text(struct ad_record *record, const char *key, const char *value)
{
	if (record->count == AD_FIELD_MAX)
		return;
	record->fields[record->count++] = (struct ad_log_field){ key, value };
}

void ad_record_u64(struct ad_record *record, const char *key, uint64_t value)
{
	char *text = record->numbers[record->count % AD_FIELD_MAX];

	ad_decimal(value, text);
	ad_record_text(record, key, text);
}

void ad_record_i64(struct ad_record *record, const char *key, int64_t value)
{
	char *text = record->numbers[record->count % AD_FIELD_MAX];

	*text = '-';
	if (value < 0)
		ad_decimal(-(uint64_t)value, text + 1);
	else
		ad_decimal((uint64_t)value, text);
	ad_record_text(record, key, text);
}

bool ad_log_wanted(const agentd_runner *runner, int32_t level)
{
	return runner->log && level <= runner->log_level;
}

int32_t ad_log_most(const agentd_runner *runner)
{
	return runner->log_level > AGENTD_LOG_INFO ? runner->log_level : AGENTD_LOG_INFO;
}

static void to_runner(agentd_runner *runner, const agentd_log_record *record)
{
	if (!ad_log_wanted(runner, record->level))
		return;
	runner->in_log++;
	runner->log(record, runner->log_userdata);
	runner->in_log--;
}

static bool has_field(const struct ad_record *record, const char *key)
{
	for (size_t i = 0; i < record->count; i++)
		if (strcmp(record->fields[i].key, key) == 0)
			return true;
	return false;
}

/* Every record says which execution it is about. */
static void add_identity(agentd_exec *exec, struct ad_record *record)
{
	ad_record_text(record, "exec_id", exec->id);
	if (exec->context->trace_id && !has_field(record, "trace_id"))
		ad_record_text(record, "trace_id", exec->context->trace_id);
}

void ad_log_exec(agentd_exec *exec, int32_t level, const char *component, const char *message,
		 struct ad_record *record)
{
	struct ad_record none = { .count = 0 };

	if (!ad_log_wanted(exec->runner, level))
		return;
	if (!record)
		record = &none;
	add_identity(exec, record);
	to_runner(exec->runner,
		  &(agentd_log_record){ level, component, message, record->fields, record->count });
}

int32_t ad_log_sink(agentd_exec *exec, int32_t level, const char *component, const char *message,
		    bool both)
{
	struct ad_record record = { .count = 0 };
	agentd_log_record out;

	add_identity(exec, &record);
	out = (agentd_log_record){ level, component, message, record.fields, record.count };
	if (both)
		to_runner(exec->runner, &out);
	return exec->sink_failed ? 0 : ad_sink_log(exec->binding, &out);
}

int32_t ad_log_both(agentd_exec *exec, int32_t level, const char *component, const char *message,
		    struct ad_record *record)
{
	agentd_log_record out;

	add_identity(exec, record);
	out = (agentd_log_record){ level, component, message, record->fields, record->count };
	to_runner(exec->runner, &out);
	return exec->sink_failed ? 0 : ad_sink_log(exec->binding, &out);
}

void ad_log_session(agentd_runner *runner, int32_t level, const char *message, const char *session,
		    const char *error)
{
	struct ad_record record = { .count = 0 };

	if (session)
		ad_record_text(&record, "session_id", session);
	if (error)
		ad_record_text(&record, "error", error);
	to_runner(runner,
		  &(agentd_log_record){ level, "pool", message, record.fields, record.count });
}
