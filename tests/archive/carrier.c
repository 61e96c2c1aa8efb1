/* SPDX-License-Identifier: MIT */
/* The carrier as a program of its own. */
#include "archive/archive.h"

int main(int argc, char **argv)
{
	return ad_archive_carry(argc, argv);
}
