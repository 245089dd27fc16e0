"""What AWS refuses of a bucket's policy though its grammar holds: what could never do what it says. Pure.

Judged when a policy is set, never when it is read: a policy that was taken before goes on as it is. Actions and what
they are about: AWS Service Authorization Reference, "Actions, resources, and condition keys for Amazon S3".
"""

from __future__ import annotations

from typing import Final

from tierstore.auth.policy_language import Policy, PolicyError, Statement
from tierstore.auth.policy_patterns import Pattern, matches

_ARN: Final = "arn:aws:s3:::"
#: In lower case, without "s3:", for actions do not care for case.
_OF_OBJECTS: Final = frozenset({
    "abortmultipartupload", "bypassgovernanceretention", "deleteobject", "deleteobjecttagging", "deleteobjectversion",
    "deleteobjectversiontagging", "getobject", "getobjectacl", "getobjectattributes", "getobjectlegalhold",
    "getobjectretention", "getobjecttagging", "getobjecttorrent", "getobjectversion", "getobjectversionacl",
    "getobjectversionattributes", "getobjectversionforreplication", "getobjectversiontagging",
    "getobjectversiontorrent", "initiatereplication", "listmultipartuploadparts", "objectowneroverridetobucketowner",
    "putobject", "putobjectacl", "putobjectlegalhold", "putobjectretention", "putobjecttagging", "putobjectversionacl",
    "putobjectversiontagging", "replicatedelete", "replicateobject", "replicatetags", "restoreobject",
    "updateobjectencryption",
})  # fmt: skip
_OF_BUCKETS: Final = frozenset({
    "createbucket", "createbucketmetadatatableconfiguration", "deletebucket",
    "deletebucketmetadatatableconfiguration", "deletebucketpolicy", "deletebucketwebsite", "getaccelerateconfiguration",
    "getanalyticsconfiguration", "getbucketabac", "getbucketacl", "getbucketcors", "getbucketlocation",
    "getbucketlogging", "getbucketmetadatatableconfiguration", "getbucketnotification",
    "getbucketobjectlockconfiguration", "getbucketownershipcontrols", "getbucketpolicy", "getbucketpolicystatus",
    "getbucketpublicaccessblock", "getbucketrequestpayment", "getbuckettagging", "getbucketversioning",
    "getbucketwebsite", "getencryptionconfiguration", "getintelligenttieringconfiguration",
    "getinventoryconfiguration", "getlifecycleconfiguration", "getmetricsconfiguration", "getreplicationconfiguration",
    "listbucket", "listbucketmultipartuploads", "listbucketversions", "listtagsforresource",
    "putaccelerateconfiguration", "putanalyticsconfiguration", "putbucketabac", "putbucketacl", "putbucketcors",
    "putbucketlogging", "putbucketnotification", "putbucketobjectlockconfiguration", "putbucketownershipcontrols",
    "putbucketpolicy", "putbucketpublicaccessblock", "putbucketrequestpayment", "putbuckettagging",
    "putbucketversioning", "putbucketwebsite", "putencryptionconfiguration", "putintelligenttieringconfiguration",
    "putinventoryconfiguration", "putlifecycleconfiguration", "putmetricsconfiguration", "putreplicationconfiguration",
    "tagresource", "untagresource", "updatebucketmetadatainventorytableconfiguration",
    "updatebucketmetadatajournaltableconfiguration",
})  # fmt: skip

#: Keys that conditions may ask for, without "s3:", and beginnings of such. The same reference, "Condition keys".
_OF_S3: Final = frozenset({
    "accessgrantsinstancearn", "accesspointnetworkorigin", "accesspointtag", "authtype", "bucketkeyenabled",
    "dataaccesspointaccount", "dataaccesspointarn", "delimiter", "destinationregion", "existingobjecttag",
    "if-match", "if-none-match", "inventoryaccessibleoptionalfields", "isobjectpubliclyaccessible",
    "jobsuspendedcause", "locationconstraint", "max-keys", "object-lock-legal-hold", "object-lock-mode",
    "object-lock-remaining-retention-days", "object-lock-retain-until-date", "objectcreationoperation", "prefix",
    "requestjoboperation", "requestjobpriority", "requestobjecttag", "requestobjecttagkeys", "resourceaccount",
    "signatureage", "signatureversion", "tlsversion", "versionid", "existingjoboperation", "existingjobpriority",
})  # fmt: skip
_OF_S3_BEGIN: Final = (
    "x-amz-", "existingobjecttag/", "requestobjecttag/", "bucketnamespace", "buckettag/", "accesspointtag/",
    "annotation",
)
_OF_AWS: Final = frozenset({
    "assumedroot", "calledvia", "calledviafirst", "calledvialast", "chatbotsourcearn", "currenttime",
    "ec2instancesourceprivateipv4", "ec2instancesourcevpc", "epochtime", "federatedprovider", "ismcpserviceaction",
    "multifactorauthage", "multifactorauthpresent", "principalaccount", "principalarn", "principalisawsservice",
    "principalorgid", "principalorgpaths", "principalservicename", "principalservicenameslist", "principaltype",
    "referer", "requestedregion", "resourceaccount", "resourceorgid", "resourceorgpaths", "securetransport",
    "signinsessionarn", "sourceaccount", "sourcearn", "sourceidentity", "sourceip", "sourceorgid", "sourceorgpaths",
    "sourceowner", "sourcevpc", "sourcevpcarn", "sourcevpce", "tagkeys", "tokenissuetime", "useragent", "userid",
    "username", "viaawsmcpservice", "viaawsservice", "vpceaccount", "vpceorgid", "vpceorgpaths", "vpcsourceip",
})  # fmt: skip
_TAGS_OF_AWS: Final = ("principaltag/", "requesttag/", "resourcetag/")


def review(policy: Policy, bucket: str) -> None:
    """Raises PolicyError: a resource outside of the bucket, an action that S3 does not have, one that none of the
    statement's resources can be the object of, a condition on a key that neither S3 nor all of AWS has, an Allow for
    everybody but some."""
    for statement in policy.statements:
        if any(not _is_about(each.text, bucket) for each in (*statement.resources, *statement.not_resources)):
            raise PolicyError("Policy has invalid resource")
        if statement.effect == "Allow" and statement.not_principals:
            raise PolicyError("Allow with NotPrincipal is not allowed")
        for key in (key for condition in statement.conditions for key in condition.keys):
            if not _is_key(key):
                raise PolicyError("Policy has an invalid condition key")
        for action in (*statement.actions, *statement.not_actions):
            _review_action(statement, action)


def _is_key(key: str) -> bool:
    """In lower case, as policies keep them."""
    service, _, name = key.partition(":")
    if service == "aws":
        return name in _OF_AWS or name.startswith(_TAGS_OF_AWS)
    return service == "s3" and (name in _OF_S3 or name.startswith(_OF_S3_BEGIN))


def _review_action(statement: Statement, action: Pattern) -> None:
    text = action.text.removeprefix("s3:")
    of_objects, of_buckets = (any(matches(text, name) for name in names) for names in (_OF_OBJECTS, _OF_BUCKETS))
    if not of_objects and not of_buckets:
        raise PolicyError("Policy has invalid action")
    if action in statement.not_actions or not statement.resources:
        return
    texts = [resource.text for resource in statement.resources]
    if not (of_objects and any(map(_names_objects, texts))) and not (of_buckets and any(map(_names_buckets, texts))):
        raise PolicyError("Action does not apply to any resource(s) in statement")


def _names_objects(resource: str) -> bool:
    return "/" in resource or _is_wild(resource)


def _names_buckets(resource: str) -> bool:
    return "/" not in resource or _is_wild(resource.partition("/")[0])


def _is_wild(text: str) -> bool:
    """Whether a star or a variable in it may stand for what follows, too."""
    return "*" in text or "${" in text


def _is_about(resource: str, bucket: str) -> bool:
    """Whether a resource of a policy can be in this bucket: its name stands for it, by wildcards too."""
    name, _, _ = resource.removeprefix(_ARN).partition("/")
    return resource == "*" or matches(name, bucket)
