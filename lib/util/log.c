/* SPDX-License-Identifier: MIT */
#include "util/util.h"

int32_t agentd_log_record_level(const agentd_log_record *record)
{
	return record ? record->level : AGENTD_LOG_ERROR;
}

const char *agentd_log_record_component(const agentd_log_record *record)
{
	return record ? record->component : "";
}

const char *agentd_log_record_message(const agentd_log_record *record)
{
	return record ? record->message : "";
}

size_t agentd_log_record_field_count(const agentd_log_record *record)
{
	return record ? record->field_count : 0;
}

const char *agentd_log_record_field_key(const agentd_log_record *record, size_t i)
{
	return record && i < record->field_count ? record->fields[i].key : NULL;
}

const char *agentd_log_record_field_value(const agentd_log_record *record, size_t i)
{
	return record && i < record->field_count ? record->fields[i].value : NULL;
}
