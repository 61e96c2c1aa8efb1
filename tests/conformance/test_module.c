/* SPDX-License-Identifier: MIT */
/* The backends of test_backend.c, and modules that are wrong, for agentd-conformance. */
#include "conformance.h"

int module_attach(agentd_runner *runner, const char **ret_name, agentd_error **reterr);
int module_deliver(agentd_runner *runner, const char **ret_name, agentd_error **reterr);
int module_liar(agentd_runner *runner, const char **ret_name, agentd_error **reterr);
int module_nameless(agentd_runner *runner, const char **ret_name, agentd_error **reterr);
int module_unable(agentd_runner *runner, const char **ret_name, agentd_error **reterr);
int module_broken(agentd_runner *runner, const char **ret_name, agentd_error **reterr);

int module_attach(agentd_runner *runner, const char **ret_name, agentd_error **reterr)
{
	*ret_name = "test-attach";
	return test_backend_add_attach(runner, reterr);
}

int module_deliver(agentd_runner *runner, const char **ret_name, agentd_error **reterr)
{
	*ret_name = "test-deliver";
	return test_backend_add_deliver(runner, reterr);
}

int module_liar(agentd_runner *runner, const char **ret_name, agentd_error **reterr)
{
	*ret_name = "test-liar";
	return test_backend_add_liar(runner, reterr);
}

int module_nameless(agentd_runner *runner, const char **ret_name, agentd_error **reterr)
{
	(void)ret_name;
	return test_backend_add_attach(runner, reterr);
}

int module_unable(agentd_runner *runner, const char **ret_name, agentd_error **reterr)
{
	(void)runner;
	(void)ret_name;
	*reterr = agentd_error_create(AGENTD_ERR_UNSUPPORTED, 0, "no paper in this house");
	return AGENTD_ERR_UNSUPPORTED;
}

int module_broken(agentd_runner *runner, const char **ret_name, agentd_error **reterr)
{
	(void)runner;
	(void)ret_name;
	(void)reterr;
	return AGENTD_ERR_NOMEM;
}
