/* SPDX-License-Identifier: MIT */
/* The zygote of a template. It gives up, one after the other and for good, what
 * commands must not have: the host's ids, mounts, names and networks. Then it waits for
 * requests; each gets a process that shares all that and goes on as reaper.c. */
#include "helper/sandbox.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/capability.h>
#include <linux/keyctl.h>
#include <linux/seccomp.h>
#include <linux/securebits.h>
#include <malloc.h>
#include <net/if.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

enum {
	/* Empty networks kept for later commands: to make one costs more than all the
	 * rest of a start, and so does to end one. */
	IDLE_NETS_MAX = 64,
	CAPABILITIES_MAX = 64,
};

struct net {
	int fd; /* -1: none */
	bool used;
};

struct zygote {
	struct sandbox sandbox;
	const struct helper_shared *shared;
	int sock;
	bool own_net; /* each command has one of these */
	struct net *nets;
	size_t net_count, idle_nets;
	uint8_t buf[REQUEST_MAX];
};

static void say(const struct zygote *zygote, const struct zygote_msg *msg)
{
	/* If nobody hears it, the end of the socket is next. */
	ad_sys_send(zygote->sock, msg, sizeof(*msg), NULL, 0, 0);
}

/* ---- what the kernel lets us have */

static bool has_capability(int capability)
{
	struct __user_cap_header_struct header = { .version = _LINUX_CAPABILITY_VERSION_3 };
	struct __user_cap_data_struct data[2];

	return syscall(SYS_capget, &header, data) == 0 &&
	       (data[capability / 32].effective & (1u << capability % 32));
}

/* The errno of unshare(flag), in a process that is not needed any more. */
static int try_unshare(int flag)
{
	pid_t pid = fork();
	int status;

	if (pid == 0)
		_exit(unshare(flag) < 0 ? errno : 0);
	if (pid < 0 || waitpid(pid, &status, 0) < 0)
		return errno;
	return WIFEXITED(status) ? WEXITSTATUS(status) : ECHILD;
}

static void enforced(struct zygote *zygote, enum ad_layer layer)
{
	zygote->sandbox.layers.layers[layer] = AD_MSG_LAYER_ENFORCED;
}

/* error 0: it is there. True: go on. */
static bool layer(struct zygote *zygote, enum ad_layer layer, int error, struct fault *fault,
		  const char *what)
{
	if (!error) {
		enforced(zygote, layer);
		return true;
	}
	return layer_failed(&zygote->sandbox.layers, &zygote->sandbox.spec->profile, layer, error,
			    fault, what);
}

static bool wanted(const struct zygote *zygote, enum ad_layer layer)
{
	return layer_wanted(&zygote->sandbox.spec->profile, layer);
}

static bool must(enum ad_layer layer, bool ok, struct fault *fault, const char *what)
{
	return ok ? true : fault_set(fault, AD_STAGE_LAYER, layer, errno, "%s", what);
}

/* ---- ids */

static bool choose_ids(struct sandbox *sandbox)
{
	const struct template_spec *spec = sandbox->spec;
	bool root = spec->from_uid == 0;

	sandbox->outer_uid = root ? spec->profile.uid : spec->from_uid;
	sandbox->outer_gid = root ? spec->profile.gid : spec->from_gid;
	sandbox->layers.uid = sandbox->outer_uid;
	sandbox->layers.gid = sandbox->outer_gid;
	/* Nobody else's groups. Without privilege the host's own stay, unmapped. */
	return !sandbox->privileged || setgroups(0, NULL) == 0;
}

/* The helper writes the maps: it has the rights over what is outside. */
static int ask_for_maps(struct zygote *zygote)
{
	struct zygote_msg msg = { .say = ZYGOTE_MAPS };
	struct ad_sys_msg in = { .data = zygote->buf, .cap = sizeof(zygote->buf) };
	int32_t answer;

	/* Else nobody but root could. */
	if (prctl(PR_SET_DUMPABLE, 1, 0, 0, 0) < 0)
		return -errno;
	say(zygote, &msg);
	if (ad_sys_recv(zygote->sock, &in, 0) <= 0 || in.len != sizeof(answer))
		_exit(0);
	prctl(PR_SET_DUMPABLE, 0, 0, 0, 0);
	memcpy(&answer, in.data, sizeof(answer));
	return answer;
}

static bool enter_userns(struct zygote *zygote, struct fault *fault)
{
	int r;

	if (!must(AD_LAYER_USERNS, unshare(CLONE_NEWUSER) == 0, fault, "unshare"))
		return false;
	r = ask_for_maps(zygote);
	if (r < 0)
		return fault_set(fault, AD_STAGE_LAYER, AD_LAYER_USERNS, -r, "uid_map");
	/* No root is mapped, so that capabilities outlast this. */
	if (!must(AD_LAYER_USERNS,
		  setresgid(SANDBOX_UID, SANDBOX_UID, SANDBOX_UID) == 0 &&
			  setresuid(SANDBOX_UID, SANDBOX_UID, SANDBOX_UID) == 0,
		  fault, "setresuid"))
		return false;
	prctl(PR_SET_DUMPABLE, 0, 0, 0, 0);
	enforced(zygote, AD_LAYER_USERNS);
	return true;
}

static bool enter_mountns(struct zygote *zygote, struct fault *fault)
{
	if (!must(AD_LAYER_MOUNTNS,
		  unshare(CLONE_NEWNS) == 0 &&
			  mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) == 0,
		  fault, "unshare"))
		return false;
	enforced(zygote, AD_LAYER_MOUNTNS);
	return true;
}

/* ---- networks */

static int loopback_up(void)
{
	int sock = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0), r = 0;
	struct ifreq request = { .ifr_name = "lo" };

	if (sock < 0)
		return -errno;
	if (ioctl(sock, SIOCGIFFLAGS, &request) < 0)
		r = -errno;
	request.ifr_flags = (short)(request.ifr_flags | IFF_UP | IFF_RUNNING);
	if (r == 0 && ioctl(sock, SIOCSIFFLAGS, &request) < 0)
		r = -errno;
	close(sock);
	return r;
}

/* A new, empty network, which is then ours as well; its descriptor or -errno. */
static int net_new(void)
{
	int r, fd;

	if (unshare(CLONE_NEWNET) < 0)
		return -errno;
	r = loopback_up();
	if (r < 0)
		return r;
	fd = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC);
	return fd < 0 ? -errno : fd;
}

/* The index of one that nobody uses, or -errno. */
static int net_add(struct zygote *zygote)
{
	size_t at = 0;
	int fd = net_new();

	if (fd < 0)
		return fd;
	while (at < zygote->net_count && zygote->nets[at].fd >= 0)
		at++;
	if (at == zygote->net_count) {
		struct net *grown = reallocarray(zygote->nets, at + 1, sizeof(*grown));

		if (!grown) {
			close(fd);
			return -ENOMEM;
		}
		zygote->nets = grown;
		zygote->net_count++;
	}
	zygote->nets[at] = (struct net){ .fd = fd };
	zygote->idle_nets++;
	return (int)at;
}

static int net_take(struct zygote *zygote)
{
	int at = -1;

	for (size_t i = 0; i < zygote->net_count && at < 0; i++) {
		if (zygote->nets[i].fd >= 0 && !zygote->nets[i].used)
			at = (int)i;
	}
	if (at < 0)
		at = net_add(zygote);
	if (at < 0)
		return at;
	zygote->nets[at].used = true;
	zygote->idle_nets--;
	return at;
}

/* Does a connection live on without its process? The next command would meet it. */
static bool net_is_clean(int fd)
{
	unsigned int in_use, orphans, waiting;
	char text[512], *tcp;

	if (setns(fd, CLONE_NEWNET) < 0 ||
	    read_small(AT_FDCWD, "/proc/self/net/sockstat", text, sizeof(text)) <= 0)
		return false;
	tcp = strstr(text, "TCP: ");
	return tcp &&
	       sscanf(tcp, "TCP: inuse %u orphan %u tw %u", &in_use, &orphans, &waiting) == 3 &&
	       in_use == 0 && orphans == 0 && waiting == 0;
}

static void net_give_back(struct zygote *zygote, uint32_t at)
{
	struct net *net;

	if (at >= zygote->net_count || !zygote->nets[at].used)
		return;
	net = &zygote->nets[at];
	net->used = false;
	if (zygote->idle_nets < IDLE_NETS_MAX && net_is_clean(net->fd)) {
		zygote->idle_nets++;
		return;
	}
	close(net->fd);
	net->fd = -1;
}

/* In the user namespace; a network to join was joined before. */
static bool enter_netns(struct zygote *zygote, struct fault *fault)
{
	const struct template_spec *spec = zygote->sandbox.spec;
	int at;

	if (spec->netns >= 0 && !zygote->sandbox.privileged)
		return must(AD_LAYER_NETNS, setns(spec->netns, CLONE_NEWNET) == 0, fault,
			    "setns") &&
		       layer(zygote, AD_LAYER_NETNS, 0, fault, NULL);
	if (spec->netns >= 0)
		return layer(zygote, AD_LAYER_NETNS, 0, fault, NULL);
	if (spec->profile.host_net || !wanted(zygote, AD_LAYER_NETNS))
		return true;
	at = net_add(zygote);
	zygote->own_net = at >= 0;
	return layer(zygote, AD_LAYER_NETNS, at < 0 ? -at : 0, fault, "unshare");
}

/* ---- the other namespaces */

static bool enter_utsns(struct zygote *zygote, struct fault *fault)
{
	static const char name[] = "sandbox";
	int error = 0;

	if (!wanted(zygote, AD_LAYER_UTSNS))
		return true;
	if (unshare(CLONE_NEWUTS) < 0 || sethostname(name, sizeof(name) - 1) < 0 ||
	    setdomainname("", 0) < 0)
		error = errno;
	return layer(zygote, AD_LAYER_UTSNS, error, fault, "unshare");
}

/* Those that each command enters by itself. */
static bool try_others(struct zygote *zygote, struct fault *fault)
{
	int error = try_unshare(CLONE_NEWPID);

	if (error)
		return fault_set(fault, AD_STAGE_LAYER, AD_LAYER_PIDNS, error, "unshare");
	enforced(zygote, AD_LAYER_PIDNS);
	if (wanted(zygote, AD_LAYER_IPCNS) &&
	    !layer(zygote, AD_LAYER_IPCNS, try_unshare(CLONE_NEWIPC), fault, "unshare"))
		return false;
	return !wanted(zygote, AD_LAYER_CGROUPNS) ||
	       layer(zygote, AD_LAYER_CGROUPNS, try_unshare(CLONE_NEWCGROUP), fault, "unshare");
}

/* ---- what is no namespace */

/* Ours go with execve(2), for no root is mapped. Here we see to it that nothing can
 * bring any back. */
static bool give_up_capabilities(struct zygote *zygote, struct fault *fault)
{
	const unsigned long bits = SECBIT_NOROOT | SECBIT_NOROOT_LOCKED | SECBIT_NO_SETUID_FIXUP |
				   SECBIT_NO_SETUID_FIXUP_LOCKED | SECBIT_KEEP_CAPS_LOCKED |
				   SECBIT_NO_CAP_AMBIENT_RAISE | SECBIT_NO_CAP_AMBIENT_RAISE_LOCKED;

	for (unsigned long capability = 0; capability < CAPABILITIES_MAX; capability++) {
		/* What the kernel does not know cannot be read either. */
		if (!must(AD_LAYER_CAPABILITIES,
			  prctl(PR_CAPBSET_DROP, capability, 0, 0, 0) == 0 ||
				  prctl(PR_CAPBSET_READ, capability, 0, 0, 0) < 0,
			  fault, "capability bounding set"))
			return false;
	}
	if (!must(AD_LAYER_CAPABILITIES,
		  prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) == 0 &&
			  prctl(PR_SET_SECUREBITS, bits, 0, 0, 0) == 0 &&
			  prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0,
		  fault, "securebits"))
		return false;
	enforced(zygote, AD_LAYER_CAPABILITIES);
	return true;
}

static bool new_keyring(struct zygote *zygote, struct fault *fault)
{
	int error = 0;

	if (!wanted(zygote, AD_LAYER_KEYRING))
		return true;
	/* A kernel without keys has none to keep from anybody. */
	if (syscall(SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, NULL) < 0 && errno != ENOSYS)
		error = errno;
	return layer(zygote, AD_LAYER_KEYRING, error, fault, "keyctl");
}

static bool put_up_landlock(struct zygote *zygote, struct fault *fault)
{
	int abi;

	if (!wanted(zygote, AD_LAYER_LANDLOCK))
		return true;
	abi = landlock_abi();
	zygote->sandbox.landlock_abi = abi;
	zygote->sandbox.layers.landlock_abi = (uint8_t)abi;
	return layer(zygote, AD_LAYER_LANDLOCK, abi > 0 ? 0 : EOPNOTSUPP, fault,
		     "the kernel has none, or it is not switched on");
}

/* Last: from here on we can do no more than set up commands. */
static bool put_up_seccomp(struct zygote *zygote, struct fault *fault)
{
	struct seccomp_filters *filters = &zygote->sandbox.filters;
	int error;

	if (!wanted(zygote, AD_LAYER_SECCOMP))
		return true;
	error = -seccomp_build(filters);
	if (!error && syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &filters->outer) < 0)
		error = errno;
	if (error)
		seccomp_free(filters);
	return layer(zygote, AD_LAYER_SECCOMP, error, fault, "seccomp");
}

/* ---- all together */

static bool set_up(struct zygote *zygote, struct fault *fault)
{
	struct sandbox *sandbox = &zygote->sandbox;
	const struct template_spec *spec = sandbox->spec;
	struct view view = { 0 };

	if (!choose_ids(sandbox))
		return fault_set(fault, AD_STAGE_LAYER, AD_LAYER_USERNS, errno, "setgroups");
	if (sandbox->outer_uid == 0 || sandbox->outer_gid == 0)
		return fault_set(fault, AD_STAGE_LAYER, AD_LAYER_USERNS, EINVAL,
				 "commands do not run as root");
	if (sandbox->privileged) {
		if (spec->netns >= 0 &&
		    !must(AD_LAYER_NETNS, setns(spec->netns, CLONE_NEWNET) == 0, fault, "setns"))
			return false;
		if (!view_collect(&view, sandbox, fault))
			return false;
	}
	if (!enter_userns(zygote, fault) || !enter_mountns(zygote, fault))
		return false;
	if (!sandbox->privileged && !view_collect(&view, sandbox, fault))
		return false;
	if (!view_build(&view, sandbox, fault) || !enter_utsns(zygote, fault) ||
	    !enter_netns(zygote, fault) || !try_others(zygote, fault))
		return false;
	enforced(zygote, AD_LAYER_RLIMITS);
	return new_keyring(zygote, fault) && put_up_landlock(zygote, fault) &&
	       give_up_capabilities(zygote, fault) && put_up_seccomp(zygote, fault);
}

/* ---- requests */

/* A fork that is the helper's child, like ourselves, and pid 1 of a new namespace. Of
 * the C library's fork nothing is missed: we have no threads. */
static pid_t fork_reaper(const struct zygote *zygote)
{
	unsigned long flags = CLONE_NEWPID | CLONE_NEWNS | CLONE_PARENT | SIGCHLD;

	if (zygote->sandbox.layers.layers[AD_LAYER_IPCNS] == AD_MSG_LAYER_ENFORCED)
		flags |= CLONE_NEWIPC;
	return (pid_t)syscall(SYS_clone, flags, NULL, NULL, NULL, NULL);
}

/* Takes nothing. */
static pid_t make_reaper(struct zygote *zygote, int net, struct ad_sys_msg *request)
{
	const struct reaper reaper = {
		.sandbox = &zygote->sandbox,
		.shared = zygote->shared,
		.net = net < 0 ? -1 : zygote->nets[net].fd,
		.request = request,
	};
	pid_t pid = fork_reaper(zygote);

	if (pid == 0) {
		close(zygote->sock);
		reaper_run(&reaper);
	}
	return pid < 0 ? -errno : pid;
}

/* ---- service */

static pid_t reaper_for(struct zygote *zygote, struct ad_sys_msg *in, int *ret_net)
{
	pid_t pid;

	*ret_net = zygote->own_net ? net_take(zygote) : -1;
	if (zygote->own_net && *ret_net < 0)
		return *ret_net;
	pid = make_reaper(zygote, *ret_net, in);
	if (pid < 0 && *ret_net >= 0)
		net_give_back(zygote, (uint32_t)*ret_net);
	return pid;
}

static void serve(struct zygote *zygote, struct ad_sys_msg *in)
{
	const struct request *request = in->data;
	struct zygote_msg answer = {
		.say = request->ahead ? ZYGOTE_AHEAD : ZYGOTE_CLONED,
		.net = ZYGOTE_NO_NET,
	};
	int net = -1;

	answer.value = in->fds_lost ? -EMFILE : reaper_for(zygote, in, &net);
	if (answer.value > 0 && net >= 0)
		answer.net = (uint32_t)net;
	say(zygote, &answer);
	/* The next command need not wait for it. */
	if (zygote->own_net && zygote->idle_nets == 0)
		net_add(zygote);
}

static void next_request(struct zygote *zygote)
{
	struct ad_sys_msg in = { .data = zygote->buf, .cap = sizeof(zygote->buf) };
	const struct request *request = in.data;

	if (ad_sys_recv(zygote->sock, &in, 0) <= 0 || in.len < sizeof(*request))
		_exit(0);
	if (request->net_free)
		net_give_back(zygote, request->net);
	else
		serve(zygote, &in);
	ad_sys_msg_close(&in);
}

/* What the making took, five times what is left, would stay until the end, and each reaper
 * copy its tables. */
static void give_back_memory(void)
{
	enum { LARGE = 16384 };
	void *volatile large; /* else the compiler does without it */

	malloc_trim(0);
	/* What is free is put in order by the next request for much, which writes to all of those
	 * pages: here, and not in each reaper, which would copy them. */
	large = malloc(LARGE);
	free(large);
}

void zygote_run(const struct template_spec *spec, int sock, const struct helper_shared *shared)
{
	static struct zygote zygote;
	struct zygote_msg msg = { 0 };

	zygote.sandbox.spec = spec;
	zygote.shared = shared;
	zygote.sock = sock;
	zygote.sandbox.privileged = has_capability(CAP_SYS_ADMIN);
	if (!set_up(&zygote, &msg.fault)) {
		msg.say = ZYGOTE_FAILED;
		say(&zygote, &msg);
		_exit(0);
	}
	/* Changes of ids clear it, so it is set now. */
	prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);
	give_back_memory();
	msg.say = ZYGOTE_READY;
	msg.layers = zygote.sandbox.layers;
	say(&zygote, &msg);
	for (;;)
		next_request(&zygote);
}
