#pragma once

// Requests that the server refuses: those of another site's page in a user's browser, unless the server was configured for them,
// and JSON nested so deeply that reading it would exhaust the stack.

#include "common.h"
#include "http.h"

#include <cpp-httplib/httplib.h>

#include <algorithm>
#include <string>

// Seconds within which a client must send the next part of its request; the server's own time-out is for answers.
constexpr int sb_read_timeout = 30;

// Levels of arrays and objects in a request: the converter of JSON schemas recurses.
constexpr int sb_max_depth = 256;

static bool sb_is_loopback(const std::string & host) {
    return host == "localhost" || host == "::1" ||
           (host.rfind("127.", 0) == 0 && host.find_first_not_of("0123456789.") == std::string::npos);
}

// The host of "host:port", lower case and without the brackets of an IPv6 address; empty if it cannot be read.
static std::string sb_host_of(const std::string & authority) {
    try {
        std::string host = common_http_parse_url("http://" + authority).host;
        std::transform(host.begin(), host.end(), host.begin(), [](unsigned char c) { return std::tolower(c); });
        return host;
    } catch (const std::exception &) {
        return "";
    }
}

// A server that listens on loopback alone answers to loopback's names: another name was rebound to this address.
static bool sb_is_host_allowed(const common_params & params, const std::string & header) {
    const auto is_local = [](const std::string & host) { return sb_is_loopback(host) || string_ends_with(host, ".sock"); };
    return header.empty() || !std::all_of(params.hostnames.begin(), params.hostnames.end(), is_local) ||
           sb_is_loopback(sb_host_of(header));
}

// Without --cors-origins: pages of this machine and the server's own.
static bool sb_is_origin_allowed(const common_params & params, const std::string & origin, const std::string & host) {
    if (origin.empty() || params.cors_origins_explicit) {
        return true;
    }
    const auto scheme_end = origin.find("://");
    if (scheme_end == std::string::npos) {
        return false; // "null": a sandboxed page or a file
    }
    const std::string authority = origin.substr(scheme_end + 3);
    return authority == host || sb_is_loopback(sb_host_of(authority));
}

static void sb_answer(httplib::Response & res, int status, const char * type, const char * message) {
    res.status = status;
    res.set_content(string_format(R"({"error":{"message":"%s","type":"%s","code":%d}})", message, type, status),
                    "application/json; charset=utf-8");
}

// Whether the request was refused, with 403 as its answer.
static bool sb_refuse(const common_params & params, const httplib::Request & req, httplib::Response & res) {
    const std::string host   = req.get_header_value("Host");
    const std::string origin = req.get_header_value("Origin");
    const bool is_host_allowed = sb_is_host_allowed(params, host);
    if (is_host_allowed && sb_is_origin_allowed(params, origin, host)) {
        return false;
    }
    sb_answer(res, 403, "permission_error", is_host_allowed ? "Origin not allowed: see --cors-origins" :
                                                              "Host not allowed: the server listens on loopback alone");
    return true;
}

// Whether a body of JSON was refused, with 400 as its answer.
static bool sb_refuse_body(const std::string & body, httplib::Response & res) {
    int  depth     = 0;
    bool in_string = false;
    for (size_t i = 0; i < body.size(); ++i) {
        const char c = body[i];
        if (in_string && c == '\\') {
            ++i;
        } else if (c == '"') {
            in_string = !in_string;
        } else if (!in_string && (c == '[' || c == '{') && ++depth > sb_max_depth) {
            sb_answer(res, 400, "invalid_request_error", "JSON is nested too deeply");
            return true;
        } else if (!in_string && (c == ']' || c == '}')) {
            --depth;
        }
    }
    return false;
}
