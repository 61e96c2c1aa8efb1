/* SPDX-License-Identifier: MIT */
/* What a sandbox looks like: the part of a SPAWN message that commands have in
 * common, so that its bytes can serve as the key of a prepared one. Pure. */
#ifndef AD_PROTO_PROFILE_H
#define AD_PROTO_PROFILE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* In the order of ad_policy_layers. */
enum ad_layer {
	AD_LAYER_USERNS,
	AD_LAYER_MOUNTNS,
	AD_LAYER_PIDNS,
	AD_LAYER_NETNS,
	AD_LAYER_IPCNS,
	AD_LAYER_UTSNS,
	AD_LAYER_CGROUPNS,
	AD_LAYER_LANDLOCK,
	AD_LAYER_SECCOMP,
	AD_LAYER_CAPABILITIES,
	AD_LAYER_KEYRING,
	AD_LAYER_RLIMITS,
	AD_LAYER_CGROUP,
	AD_LAYER_IDMAP,
	AD_LAYER_COUNT
};

/* The values of AGENTD_PROTECTION_*. */
enum { AD_STRICT_REQUIRED, AD_STRICT_DEGRADABLE, AD_STRICT_OFF, AD_STRICT_COUNT };

/* The values of AGENTD_ACCESS_*; 0 denies. */
enum { AD_ACCESS_READ = 1, AD_ACCESS_WRITE = 2, AD_ACCESS_EXEC = 4, AD_ACCESS_ALL = 7 };

/* Where each command finds what is its own. */
#define AD_PROFILE_HOME "/run/home"
#define AD_PROFILE_TOKEN "/run/credentials/token"

enum { AD_PROFILE_PATHS_MAX = 16384, AD_PROFILE_NAMES_MAX = 16384 };

struct ad_profile_path {
	const char *source, *target; /* absolute */
	uint8_t access;
};

struct ad_profile {
	uint32_t uid, gid;  /* outside, when the host program is root */
	uint32_t prewarm;   /* sandboxes to keep ready */
	uint64_t tmp_bytes; /* of the private temporary file system */
	bool host_net;      /* the host's network; else an empty one */
	/* TCP port on 127.0.0.1 that a socket listens on, in each command's own network, for
	 * the library to serve; 0: none. */
	uint16_t proxy_port;
	uint8_t workdir_access;
	uint8_t strict[AD_LAYER_COUNT];
	size_t path_count, name_count;
	/* Encoding reads these; decoding sets them to NULL: see ad_profile_fill(). */
	const struct ad_profile_path *paths;
	const char *const *names; /* protected, relative */
	/* Set by decoding, in the message. */
	const uint8_t *access;
	const char *strings;
};

size_t ad_profile_size(const struct ad_profile *profile);
/* buf has room for ad_profile_size(). Returns what was written. */
size_t ad_profile_encode(const struct ad_profile *profile, uint8_t *buf);
/* False if malformed. Points into buf. */
bool ad_profile_decode(struct ad_profile *ret, const uint8_t *buf, size_t len);
/* Fill path_count and name_count entries, and point the profile to them. */
void ad_profile_fill(struct ad_profile *profile, struct ad_profile_path *paths, const char **names);

#endif
