"""What shops, data sets and tools call the columns of the data contract, and the actions of their feedback chains."""

from __future__ import annotations

import re

# Role -> names without case and signs, the surest first.
_EVENT_NAMES = {
    "user_id": """
        userid user customerid customer uid visitorid visitor userpseudoid memberid member clientid client
        accountid account buyerid buyer subscriberid profileid reviewerid personid fullvisitorid
        kundennummer kundenid kundennr kunde nutzer nutzerid benutzer utilisateur cliente clienteid email
        emailaddress username cookieid deviceid anonymousid sessionid session usersession visitid
        hashedemail userhash rater
    """,
    "item_id": """
        itemid item productid product sku articleid article stockcode asin isbn movieid movie videoid video
        trackid track songid song businessid newsid bookid book aid contentid goodsid materialid offerid
        listingid hotelid poi poiid venueid recipeid appid gameid showid podcastid documentid docid
        artikelnummer artikelnr artikelid artikel produktid produkt lineitemsku itemsku adid merchandiseid
        wid noteid pid iid mid lineitemname producto articulo
    """,
    "timestamp": """
        timestamp time ts eventtimestamp eventtime datetime unixtimestamp unixreviewtime timems timestampms
        createdat createdtime date eventdate orderdate purchasedate invoicedate transactiondate
        transactiondt transactiontime tdat reviewtime clicktime occurredat datum zeit zeitpunkt zeitstempel
        bestelldatum kaufdatum datumuhrzeit fecha listenedat playedat logtime eventts servertime dt day when
        timeadded ratedat position ordernumber seq sequence step
    """,
    "action": """
        action event eventtype eventname actiontype behavior behaviour behaviortype behaviourtype
        interaction interactiontype activity activitytype aktion ereignis eventaction feedback type
    """,
    "query": """
        query searchquery searchterm searchkeyword keyword keywords searchstring searchtext searchphrase
        searchstringtokens suchbegriff suchanfrage querytext term q
    """,
    "request_id": """
        requestid impressionid searchid pageviewid queryid
    """,
    "quantity": """
        quantity qty menge anzahl lineitemquantity units stueck stück itemquantity cantidad
    """,
    "position": """
        rank slot displayposition
    """,
}
_ITEM_NAMES = {
    "title": """
        lineitemname title itemtitle producttitle productname itemname prodname movietitle booktitle
        videotitle name titel bezeichnung artikelbezeichnung produktname artikelname headline trackname
        songname caption productnametokens
    """,
    "text": """
        text description productdescription detaildesc itemdescription beschreibung abstract overview
        summary body content plot
    """,
    "brand": """
        brand brandname brandid manufacturer marke hersteller vendor lineitemvendor publisher bookauthor
        artist artistname seller sellerid label author
    """,
    "category": """
        category categories categorycode categoryname productcategory itemcategory genres genre kategorie
        warengruppe producttype producttypename productgroupname department departmentname aisle topic
        subcategory categoryid catid cat tags class itemcategory2 googleproductcategory
    """,
    "price": """
        price itemprice unitprice salesprice saleprice itemcost listprice productprice preis einzelpreis
        verkaufspreis lineitemprice precio pricelog2
    """,
}
EVENT_NAMES = {role: tuple(names.split()) for role, names in _EVENT_NAMES.items()}
ITEM_NAMES = {role: tuple(names.split()) for role, names in _ITEM_NAMES.items()}
USER_NAMES = (
    "age",
    "gender",
    "sex",
    "country",
    "city",
    "zip",
    "zipcode",
    "occupation",
    "registered",
    "signup",
    "location",
)

# Action -> its stage in the chain.
_STAGE_WORDS = (
    """
        impression impressions exposure shown show viewitemlist
    """,
    """
        view pv pageview productview viewitem detail detailview click clicks open read watch play listen
        visit ansicht klick selectitem viewcontent
    """,
    """
        favorite favourite fav like collect save wishlist addtowishlist share addtofavourites merken
    """,
    """
        cart carts addtocart add2cart basket warenkorb
    """,
    """
        checkout begincheckout
    """,
    """
        purchase purchases buy buys order orders transaction conversion kauf bestellung sale bought
    """,
)
STAGES = {word: stage for stage, words in enumerate(_STAGE_WORDS) for word in words.split()}


def bare(name: str) -> str:
    """A name in lower case without spaces and signs: ``Lineitem SKU`` and ``lineitem_sku`` are one."""
    return re.sub(r"[\W_]+", "", name.lower())


def stage_of(action: str) -> int | None:
    """The stage of an action in the feedback chain, or None for an unknown word."""
    return STAGES.get(bare(action))


def rank_of(name: str, names: tuple[str, ...]) -> float | None:
    """How sure a column's name is for a role, from 0 (surest); None where it does not name the role."""
    whole, last = bare(name), bare(re.split(r"[.:]", name)[-1])
    if whole in names:
        return names.index(whole)
    if last in names:
        return names.index(last) + 0.5
    for index, known in enumerate(names):
        if len(known) > 4 and (whole.endswith(known) or whole.startswith(known)):
            return 100 + index
    return None
