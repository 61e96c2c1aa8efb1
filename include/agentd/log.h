/* SPDX-License-Identifier: MIT */
/** @file
 * Log records. Logging is per runner: no process-wide state, never stderr or
 * syslog.
 */
#ifndef AGENTD_LOG_H
#define AGENTD_LOG_H

#include <agentd/base.h>

#ifdef __cplusplus
extern "C" {
#endif

/** Levels, the most severe first. */
enum { AGENTD_LOG_ERROR = 0, AGENTD_LOG_WARN = 1, AGENTD_LOG_INFO = 2, AGENTD_LOG_DEBUG = 3 };

/** One record; valid only during the callback that received it. */
typedef struct agentd_log_record agentd_log_record;

/** AGENTD_LOG_*. */
AGENTD_API int32_t agentd_log_record_level(const agentd_log_record *record);
/** The part of the library that speaks: "core", "host", ... Borrowed. */
AGENTD_API const char *agentd_log_record_component(const agentd_log_record *record);
/** Text without a trailing newline. Borrowed. */
AGENTD_API const char *agentd_log_record_message(const agentd_log_record *record);
/** Number of fields. A field is a key and a printable value ("child_pid",
 *  "elapsed_ms", "trace_id"). */
AGENTD_API size_t agentd_log_record_field_count(const agentd_log_record *record);
/** Key of field i, or NULL past the end. Borrowed. */
AGENTD_API const char *agentd_log_record_field_key(const agentd_log_record *record, size_t i);
/** Value of field i, or NULL past the end. Borrowed. */
AGENTD_API const char *agentd_log_record_field_value(const agentd_log_record *record, size_t i);

/** Receives a record. Must not call back into the library, but for the
 *  accessors above: such calls return AGENTD_ERR_REENTRANT where they can. */
typedef void (*agentd_log_fn)(const agentd_log_record *record, void *userdata);

#ifdef __cplusplus
}
#endif

#endif
